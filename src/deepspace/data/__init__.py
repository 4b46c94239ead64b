"""From sections to arrays: tissue, coordinates, patches, targets, splits."""
