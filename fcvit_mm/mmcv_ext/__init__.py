"""A stand-in for `mmcv._ext`, the compiled operators of mmcv."""
