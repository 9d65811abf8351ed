"""What builders of data sets share: lists and trees of files, checked frames, skeletons, published counts."""
