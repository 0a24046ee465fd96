//! Trains the embedded model from scratch on the toy world.

fn main() {}
