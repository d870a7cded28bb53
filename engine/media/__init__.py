"""Videos, images and masks: read, written and drawn."""
