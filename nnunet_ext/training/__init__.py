"""The trainer classes. ``trainers/`` re-exports them under nnU-Net's file-name convention."""
