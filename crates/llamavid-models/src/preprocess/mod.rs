//! Turns a picture into the pixels that the visual encoder reads.
