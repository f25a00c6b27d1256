"""FastFlow (Yu et al. 2021): normalizing flows on the feature maps of a frozen backbone."""
