"""Attacks on what reads files and on the ops, from numbered random cases.

``python -m tests.attack --seconds 60`` runs each of them for a minute, as CI does; ``--seconds
7200`` for two hours; ``--only nifti:1234`` repeats one case. A case that raises anything but the
promised error, takes too long or too much memory is a fault.
"""
