"""nnunet_ext: radiotherapy contouring with unmodified nnU-Net v2.

Importing this package loads nothing heavy; torch and nnU-Net are imported where they are used.
"""

__version__ = "0.1.0"
