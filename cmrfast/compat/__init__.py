"""Drop-ins for other people's pipelines, each with an extra of its name; nothing here imports them.

``compat.monai`` has MONAI's classes on our ops, ``compat.nnunet`` a trainer of nnU-Net,
``compat.lightning`` the methods as Lightning's modules.
"""
