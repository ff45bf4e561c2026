"""``python -m nnunet_ext.cli`` is the same as ``nnunet-ext``."""

from nnunet_ext.cli import main

main()
