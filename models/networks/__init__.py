"""The networks that ship with diastole, each in a file of its own; none has buffers."""
