"""The measurements put to the proof: one module a part, each from settings to a result that JSON can hold."""
