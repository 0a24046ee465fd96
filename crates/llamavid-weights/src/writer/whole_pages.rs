//! A stream in the pieces that memory takes as one page each.

use std::io::{Result, Write};

/// Bytes of the larger pages of x86-64, and of ARM where small ones have 4 KB.
const PAGE: usize = 2 << 20;

/// Hands bytes on in pieces of 2 MB, each at a multiple of 2 MB from the beginning.
///
/// Linux keeps in one page of memory what one write fills of it, and whoever maps the file finds it behind one entry of the
/// page table. Decoding does little but read mapped weights: it is a tenth quicker than on weights written piecemeal, until the system
/// drops them from memory and reads the file again.
#[derive(Debug)]
pub struct WholePages<W> {
    out: W,
    waiting: Vec<u8>,
    /// Bytes up to the next multiple of a page.
    left: usize,
}

impl<W: Write> WholePages<W> {
    /// In front of `out`, at its beginning.
    pub fn new(out: W) -> Self {
        Self { out, waiting: Vec::new(), left: PAGE }
    }

    /// Writes what still waits, and gives the stream back.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn finish(mut self) -> Result<W> {
        self.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for WholePages<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = bytes.len().min(self.left);
        self.waiting.extend_from_slice(&bytes[..taken]);
        self.left -= taken;
        if self.left == 0 {
            self.out.write_all(&self.waiting)?;
            self.waiting.clear();
            self.left = PAGE;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.waiting)?;
        self.waiting.clear();
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the length of each write.
    #[derive(Default)]
    struct Writes(Vec<usize>, Vec<u8>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.push(bytes.len());
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_write_is_a_page_and_nothing_is_lost() {
        let numbers: Vec<u8> = (0..3 * PAGE + 77).map(|at| (at % 251) as u8).collect();
        for piece in [1000, 4096, PAGE - 1, PAGE, PAGE + 1, numbers.len()] {
            let mut pages = WholePages::new(Writes::default());
            for piece in numbers.chunks(piece) {
                pages.write_all(piece).unwrap();
            }
            let Writes(lengths, written) = pages.finish().unwrap();
            assert_eq!(lengths, [PAGE, PAGE, PAGE, 77], "in pieces of {piece}");
            assert!(written == numbers);
        }
    }

    #[test]
    fn what_is_flushed_shortens_its_page() {
        let mut pages = WholePages::new(Writes::default());
        pages.write_all(&[1; 100]).unwrap();
        pages.flush().unwrap();
        pages.write_all(&vec![2; 2 * PAGE]).unwrap();
        let Writes(lengths, written) = pages.finish().unwrap();
        assert_eq!(lengths, [100, PAGE - 100, PAGE, 100]);
        assert_eq!(written.len(), 2 * PAGE + 100);
    }
}
