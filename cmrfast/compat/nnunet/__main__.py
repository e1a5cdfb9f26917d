"""Prints the folder for nnU-Net's environment variable ``nnUNet_extTrainer``."""

from pathlib import Path

#: nnU-Net imports every file of this folder, which therefore holds nothing but the trainer.
FOLDER = Path(__file__).parent / "trainers"

if __name__ == "__main__":
    print(FOLDER)
