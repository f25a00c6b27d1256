"""Images -> feature maps."""
