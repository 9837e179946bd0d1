"""Images: FITS in and out, background, PSF, remapping, subtraction, detection, photometry, cutouts."""
