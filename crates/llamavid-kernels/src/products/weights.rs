//! The weights of a linear layer in memory.

use std::ops::Range;

use crate::formats::block_format::BlockFormat;
use crate::formats::interleaved::INTERLEAVED_ROWS;

/// The weights of a linear layer, row after row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a> {
    F32(&'a [f32]),
    Blocks(BlockFormat, &'a [u8]),
    /// The blocks of each sixteen rows are interleaved, see [`crate::formats::interleaved`].
    Interleaved(BlockFormat, &'a [u8]),
}

impl<'a> Weights<'a> {
    /// How their numbers are stored.
    pub(crate) fn format(self) -> BlockFormat {
        match self {
            Self::F32(_) => BlockFormat::F32,
            Self::Blocks(format, _) | Self::Interleaved(format, _) => format,
        }
    }

    /// Whether `other` are stored in the same way.
    pub(crate) fn is_like(self, other: Self) -> bool {
        (self.format(), self.unit()) == (other.format(), other.unit())
    }

    /// Rows of which a part is to begin with a whole number of times as many.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Interleaved(..) => INTERLEAVED_ROWS,
            Self::F32(_) | Self::Blocks(..) => 1,
        }
    }

    /// Some rows of `columns` numbers. Those of a unit stay together: the last ones may be fewer, where all rows end.
    pub(crate) fn part(self, rows: Range<usize>, columns: usize) -> Self {
        assert!(rows.start.is_multiple_of(self.unit()), "rows from the middle of interleaved ones on");
        let of = |bytes: &'a [u8], row_bytes: usize| &bytes[rows.start * row_bytes..rows.end * row_bytes];
        match self {
            Self::F32(values) => Self::F32(&values[rows.start * columns..rows.end * columns]),
            Self::Blocks(format, bytes) => Self::Blocks(format, of(bytes, row_bytes(format, columns))),
            Self::Interleaved(format, bytes) => {
                assert!(
                    rows.len().is_multiple_of(INTERLEAVED_ROWS)
                        || rows.end * row_bytes(format, columns) == bytes.len(),
                    "rows up to the middle of interleaved ones"
                );
                Self::Interleaved(format, of(bytes, row_bytes(format, columns)))
            }
        }
    }

    /// The same row after row: a copy, in `room`, where they are interleaved.
    pub(crate) fn deinterleaved<'b>(self, columns: usize, room: &'b mut Vec<u8>) -> Weights<'b>
    where
        'a: 'b,
    {
        match self {
            Self::F32(_) | Self::Blocks(..) => self,
            Self::Interleaved(format, bytes) => {
                room.resize(bytes.len(), 0);
                format.deinterleave(bytes, row_bytes(format, columns), room);
                Weights::Blocks(format, room)
            }
        }
    }

    /// The bytes of whole interleaved groups of rows of `row_bytes`, and those of the rows that lie one after the other.
    pub(crate) fn groups(self, row_bytes: usize) -> (&'a [u8], &'a [u8]) {
        let bytes = self.bytes();
        match self {
            Self::Interleaved(..) => {
                bytes.split_at(bytes.len() - bytes.len() % (INTERLEAVED_ROWS * row_bytes))
            }
            Self::F32(_) | Self::Blocks(..) => bytes.split_at(0),
        }
    }

    /// Their bytes as they lie.
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Self::F32(values) => pulp::bytemuck::cast_slice(values),
            Self::Blocks(_, bytes) | Self::Interleaved(_, bytes) => bytes,
        }
    }
}

/// Bytes of a row of whole blocks.
pub(crate) fn row_bytes(format: BlockFormat, columns: usize) -> usize {
    columns / format.block_length() * format.block_bytes()
}
