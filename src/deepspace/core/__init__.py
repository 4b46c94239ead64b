"""What everything else stands on: errors, names, configuration, files, scores."""
