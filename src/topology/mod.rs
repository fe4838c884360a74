//! The topology file: read, checked, promised, drawn.
