"""One label map from several models: who owns which organ, how owners are chosen, how maps are merged."""
