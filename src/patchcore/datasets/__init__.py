"""Categories as folders, images and masks as pixels, and batches of them."""
