"""Everything that turns a schedule of masks into an evaluation, behind one protocol."""
