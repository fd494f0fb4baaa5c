"""The networks that ship with diastole, each in a file of its own; none of them has buffers."""
