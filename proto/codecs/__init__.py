"""The codecs that ship with diastole; `proto/codec.py` says what a codec is."""
