"""A local web page that shows slides, measurements and predictions."""
