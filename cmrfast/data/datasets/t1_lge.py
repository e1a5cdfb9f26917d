"""T1 maps with LGE of the same hearts: cmrfast's own layout, as no public set has both.

One folder a subject, whose name is the subject's; the files may end in ``.nii`` as well::

    <root>/<subject>/
      t1.nii.gz               T1 map in ms, one or more short-axis slices (I, J, K)
      lge.nii.gz              LGE, any intensity scale, on a grid of its own
      t1_myocardium.nii.gz    0/1, left ventricular myocardium on the grid of t1
      lge_myocardium.nii.gz   0/1, the same on the grid of lge
      lge_reference.nii.gz    0/1, healthy myocardium on the grid of lge; optional
      lge_lesion.nii.gz       0/1, hyper-enhancement on the grid of lge; optional

Slices of both images are matched by where they lie in the scanner, so both headers must carry true
positions. Without ``lge_reference`` or ``lge_lesion`` the method derives them from the LGE image.
"""
