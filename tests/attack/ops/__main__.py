"""The process of the references: ``python -m tests.attack.ops``, which reference.py starts."""

from tests.attack.ops.reference import serve

if __name__ == "__main__":
    serve()
