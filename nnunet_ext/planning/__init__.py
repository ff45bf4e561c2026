"""Planners: nnU-Net's own with the axial axis first, and presets for small machines."""
