//! Sees intermediate tensors by the names of the parity cases, at no cost when nobody looks.

use candle_core::Tensor;

/// Receives intermediate tensors in the order in which they are computed.
///
/// Names are those of `fixtures/oracle/README.md`: `vit.block0`, `qf.out`, `tok.scores`, `llm.norm`, ….
pub trait Observer {
    /// Called once for each tensor. The default sees nothing.
    fn see(&mut self, _name: &str, _tensor: &Tensor) {}

    /// Whether tensors are wanted: lets a caller skip work that only an observer needs.
    fn wants(&self) -> bool {
        false
    }
}

/// Looks at nothing.
#[derive(Debug, Clone, Copy)]
pub struct Blind;

impl Observer for Blind {}
