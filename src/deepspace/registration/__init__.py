"""Registration of serial sections: from images alone to coordinates of one common frame."""
