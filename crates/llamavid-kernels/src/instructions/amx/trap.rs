//! AMX instructions where the processor has none, so that tests run the very code that others run: such a processor raises SIGILL at
//! each of them, and the signal's handler does here what the instruction would have done, as Intel's manual (volume 2) defines it. What
//! a processor would refuse ends the tests.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};

/// Rows of a tile at most.
const ROWS: usize = 16;
/// Bytes of a row at most.
const ROW_BYTES: usize = 64;
const TILES: usize = 8;
/// Bytes of an instruction at most.
const LONGEST: usize = 15;

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State::INITIAL) };
}

/// Carries the instructions out from now on, in all threads.
pub(crate) fn set() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        // SAFETY: an action of zeros is a valid one, and the handler is a function of the kind that is announced.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = refused as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "no handler for instructions that are refused");
    });
}

/// What happens when the processor refuses an instruction. The thread is at that instruction, so that nothing of it is under way.
extern "C" fn refused(_signal: libc::c_int, _about: *const libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a context, and the instruction can be read where it was.
    let (registers, code) = unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as *const u8;
        (registers, std::slice::from_raw_parts(at, LONGEST))
    };
    let instruction = decoded(code);
    let result = STATE.with(|state| {
        let value = |register| place(register).map(|place| registers[place] as usize);
        // SAFETY: the code under test vouches for its addresses.
        unsafe { state.borrow_mut().carry_out(&instruction, value) }
    });
    match result {
        Ok(()) => registers[libc::REG_RIP as usize] += instruction.len() as i64,
        Err(reason) => {
            // Not with `eprintln`, which a test keeps to itself.
            let _ = writeln!(std::io::stderr(), "{:?} is refused: {reason}", instruction.code());
            std::process::abort();
        }
    }
}

fn decoded(code: &[u8]) -> Instruction {
    Decoder::new(64, code, DecoderOptions::NONE).decode()
}

/// Where the kernel keeps a general register.
fn place(register: Register) -> Option<usize> {
    /// In the order of their numbers.
    const PLACES: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let number = (register as usize).checked_sub(Register::RAX as usize)?;
    PLACES.get(number).map(|place| *place as usize)
}

/// The tiles of a thread.
struct State {
    /// As it was loaded; zeros where none is.
    configuration: [u8; 64],
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

/// A tile as it is configured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    rows: usize,
    bytes: usize,
}

impl State {
    const INITIAL: Self = Self { configuration: [0; 64], tiles: [[[0; ROW_BYTES]; ROWS]; TILES] };

    /// Does what an instruction does, with the values of registers.
    ///
    /// # Safety
    /// What it reads and writes can be read and written.
    unsafe fn carry_out(
        &mut self,
        instruction: &Instruction,
        value: impl Fn(Register) -> Option<usize>,
    ) -> Result<(), String> {
        let value = |register| match register {
            Register::None => Ok(0),
            _ => value(register).ok_or_else(|| format!("an address of {register:?}")),
        };
        let displacement = instruction.memory_displacement64() as usize;
        let address = value(instruction.memory_base())?.wrapping_add(displacement);
        // From a row to the next.
        let stride = value(instruction.memory_index())? * instruction.memory_index_scale() as usize;
        match instruction.mnemonic() {
            // SAFETY: as the caller promises.
            Mnemonic::Ldtilecfg => self.configure(unsafe { *(address as *const [u8; 64]) })?,
            // SAFETY: as the caller promises.
            Mnemonic::Sttilecfg => unsafe { *(address as *mut [u8; 64]) = self.configuration },
            Mnemonic::Tilerelease => *self = Self::INITIAL,
            Mnemonic::Tilezero => {
                let (tile, _shape) = self.tile(instruction.op0_register())?;
                self.tiles[tile] = [[0; ROW_BYTES]; ROWS];
            }
            Mnemonic::Tileloadd | Mnemonic::Tileloaddt1 => {
                let (tile, shape) = self.tile(instruction.op0_register())?;
                self.tiles[tile] = [[0; ROW_BYTES]; ROWS];
                for (row, into) in self.tiles[tile].iter_mut().take(shape.rows).enumerate() {
                    let from = (address + row * stride) as *const u8;
                    // SAFETY: as the caller promises.
                    into[..shape.bytes]
                        .copy_from_slice(unsafe { std::slice::from_raw_parts(from, shape.bytes) });
                }
            }
            Mnemonic::Tilestored => {
                let (tile, shape) = self.tile(instruction.op1_register())?;
                for (row, from) in self.tiles[tile].iter().take(shape.rows).enumerate() {
                    let into = (address + row * stride) as *mut u8;
                    // SAFETY: as the caller promises.
                    unsafe { std::slice::from_raw_parts_mut(into, shape.bytes) }
                        .copy_from_slice(&from[..shape.bytes]);
                }
            }
            Mnemonic::Tdpbssd => self.multiply(instruction, |sum, products| add(sum, products, signed))?,
            Mnemonic::Tdpbusd => self.multiply(instruction, |sum, products| add(sum, products, unsigned))?,
            Mnemonic::Tdpbf16ps => self.multiply(instruction, add_pairs)?,
            _ => return Err("nothing here knows it".into()),
        }
        Ok(())
    }

    fn configure(&mut self, configuration: [u8; 64]) -> Result<(), String> {
        *self = Self::INITIAL;
        match configuration[0] {
            0 => return Ok(()),
            1 => self.configuration = configuration,
            palette => return Err(format!("palette {palette}")),
        }
        for tile in 0..16 {
            let Shape { rows, bytes } = self.shape(tile);
            let most = if tile < TILES { (ROWS, ROW_BYTES) } else { (0, 0) };
            if rows > most.0 || bytes > most.1 || (rows == 0) != (bytes == 0) {
                return Err(format!("tile {tile} of {rows} rows of {bytes} bytes"));
            }
        }
        match configuration[1..16] == [0; 15] {
            true => Ok(()),
            false => Err("a row to start at, or bits that mean nothing".into()),
        }
    }

    fn shape(&self, tile: usize) -> Shape {
        let bytes = [16 + 2 * tile, 17 + 2 * tile].map(|place| self.configuration[place]);
        Shape { rows: self.configuration[48 + tile].into(), bytes: u16::from_le_bytes(bytes).into() }
    }

    /// A tile that is configured.
    fn tile(&self, register: Register) -> Result<(usize, Shape), String> {
        let tile = (register as usize).wrapping_sub(Register::TMM0 as usize);
        if tile >= TILES {
            return Err(format!("{register:?} is no tile"));
        }
        let shape = self.shape(tile);
        match shape.rows {
            0 => Err(format!("tile {tile} is not configured")),
            _ => Ok((tile, shape)),
        }
    }

    /// Lets `add` add the products of 32 bits of rows of the second operand and of columns of the third to the first.
    fn multiply(
        &mut self,
        instruction: &Instruction,
        add: impl Fn([u8; 4], &mut dyn Iterator<Item = [[u8; 4]; 2]>) -> [u8; 4],
    ) -> Result<(), String> {
        let (sums, of_sums) = self.tile(instruction.op0_register())?;
        let (x, shape_of_x) = self.tile(instruction.op1_register())?;
        let (weights, shape_of_weights) = self.tile(instruction.op2_register())?;
        let expected = [
            Shape { rows: of_sums.rows, bytes: 4 * shape_of_weights.rows },
            Shape { rows: shape_of_x.bytes / 4, bytes: of_sums.bytes },
        ];
        if expected != [shape_of_x, shape_of_weights] || !of_sums.bytes.is_multiple_of(4) {
            return Err(format!("{shape_of_x:?} times {shape_of_weights:?} gives no {of_sums:?}"));
        }
        if sums == x || sums == weights || x == weights {
            return Err("a tile twice".into());
        }
        let (x, weights) = (self.tiles[x], self.tiles[weights]);
        for (row, sums) in self.tiles[sums].iter_mut().enumerate() {
            let (places, beyond) = sums.split_at_mut(of_sums.bytes);
            beyond.fill(0);
            for (column, sum) in places.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let step = |step: usize| [x[row].as_chunks().0[step], weights[step].as_chunks().0[column]];
                *sum = add(*sum, &mut (0..shape_of_weights.rows).map(step));
            }
        }
        Ok(())
    }
}

/// Adds four products of 8-bit integers each. Weights are signed.
fn add(sum: [u8; 4], steps: &mut dyn Iterator<Item = [[u8; 4]; 2]>, of_x: fn(u8) -> i32) -> [u8; 4] {
    let products = steps.flat_map(|[x, weights]| {
        std::array::from_fn::<_, 4, _>(|place| of_x(x[place]) * signed(weights[place]))
    });
    products.fold(i32::from_le_bytes(sum), i32::wrapping_add).to_le_bytes()
}

/// Adds products of two numbers in bf16 each: first of each step, and second ones, are added up by themselves. What is less than
/// 2^-126 is 0 throughout.
fn add_pairs(sum: [u8; 4], steps: &mut dyn Iterator<Item = [[u8; 4]; 2]>) -> [u8; 4] {
    let flushed = |value: f32| if value.abs() < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value };
    let number = |[_, _, low, high]: [u8; 4]| flushed(f32::from_le_bytes([0, 0, low, high]));
    let [mut first, mut second] = [0f32; 2];
    for pair in steps {
        let [x, weights] = pair.map(|[a, b, c, d]| [number([0, 0, a, b]), number([0, 0, c, d])]);
        first = flushed(x[0].mul_add(weights[0], first));
        second = flushed(x[1].mul_add(weights[1], second));
    }
    flushed(flushed(f32::from_le_bytes(sum)) + flushed(first + second)).to_le_bytes()
}

fn signed(number: u8) -> i32 {
    (number as i8).into()
}

fn unsigned(number: u8) -> i32 {
    number.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDTILECFG_RAX: [u8; 5] = [0xc4, 0xe2, 0x78, 0x49, 0x00];
    const TILERELEASE: [u8; 5] = [0xc4, 0xe2, 0x78, 0x49, 0xc0];
    const TILEZERO_0: [u8; 5] = [0xc4, 0xe2, 0x7b, 0x49, 0xc0];
    const TILELOADD_1_RAX_RCX: [u8; 6] = [0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08];
    const TILELOADD_2_RAX_RCX: [u8; 6] = [0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x08];
    const TILESTORED_RAX_RCX_0: [u8; 6] = [0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x08];
    const TDPBUSD_0_1_2: [u8; 5] = [0xc4, 0xe2, 0x69, 0x5e, 0xc1];
    const TDPBUSD_0_1_1: [u8; 5] = [0xc4, 0xe2, 0x71, 0x5e, 0xc1];
    const TDPBSUD_0_1_2: [u8; 5] = [0xc4, 0xe2, 0x6a, 0x5e, 0xc1];

    /// Tiles of rows and bytes.
    fn configuration(shapes: &[(u8, u8)]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for (tile, (rows, row_bytes)) in shapes.iter().enumerate() {
            (bytes[16 + 2 * tile], bytes[48 + tile]) = (*row_bytes, *rows);
        }
        bytes
    }

    /// Carries out instructions with an address in RAX and a stride in RCX.
    fn run(state: &mut State, code: &[u8], rax: *mut u8, rcx: usize) -> Result<(), String> {
        let value = |register| match register {
            Register::RAX => Some(rax as usize),
            Register::RCX => Some(rcx),
            _ => None,
        };
        // SAFETY: each test has memory for its instructions.
        unsafe { state.carry_out(&decoded(code), value) }
    }

    fn configured(mut configuration: [u8; 64]) -> Result<State, String> {
        let mut state = State::INITIAL;
        run(&mut state, &LDTILECFG_RAX, configuration.as_mut_ptr(), 0).map(|()| state)
    }

    #[test]
    fn a_product_by_hand() {
        // 2 rows of 8 numbers, and 8 of each of 3 columns.
        let mut state = configured(configuration(&[(2, 12), (2, 8), (2, 12)])).unwrap();
        let mut x = [1, 0, 0, 0, 0, 0, 0, 255, 9, 9, 0, 2, 0, 0, 0, 0, 0, 0];
        let mut weights = [5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 128, 0, 0, 0, 127];
        weights[1] = 3;
        run(&mut state, &TILEZERO_0, x.as_mut_ptr(), 0).unwrap();
        run(&mut state, &TILELOADD_1_RAX_RCX, x.as_mut_ptr(), 10).unwrap();
        run(&mut state, &TILELOADD_2_RAX_RCX, weights.as_mut_ptr(), 12).unwrap();
        for times in 1..3 {
            run(&mut state, &TDPBUSD_0_1_2, x.as_mut_ptr(), 0).unwrap();
            let mut sums = [77i32; 8];
            run(&mut state, &TILESTORED_RAX_RCX_0, sums.as_mut_ptr().cast(), 16).unwrap();
            let [five, six, seven] = [5 - 255, 6 - 255 * 128, 7 + 255 * 127].map(|sum| times * sum);
            assert_eq!(sums, [five, six, seven, 77, 6 * times, 0, 0, 77]);
        }
        run(&mut state, &TILERELEASE, x.as_mut_ptr(), 0).unwrap();
        assert_eq!(state.configuration, [0; 64]);
        assert!(run(&mut state, &TILEZERO_0, x.as_mut_ptr(), 0).is_err());
    }

    #[test]
    fn what_a_processor_refuses_is_refused() {
        let plain = configuration(&[(16, 64), (16, 64), (16, 64)]);
        for (place, value) in
            [(0, 2), (1, 1), (5, 1), (16, 65), (17, 1), (48, 17), (48, 0), (16, 0), (40, 4), (60, 1)]
        {
            let mut wrong = plain;
            wrong[place] = value;
            assert!(configured(wrong).is_err(), "{place}");
        }
        for (shapes, wrong) in [
            (&[(16, 64), (16, 64), (16, 64)], false),
            (&[(16, 64), (16, 32), (8, 64)], false),
            (&[(16, 64), (16, 64), (8, 64)], true),
            (&[(15, 64), (16, 64), (16, 64)], true),
            (&[(16, 64), (16, 64), (16, 60)], true),
            (&[(16, 62), (16, 64), (16, 62)], true),
            (&[(16, 64), (16, 30), (7, 64)], true),
            (&[(16, 64), (16, 64), (0, 0)], true),
        ] {
            let mut state = configured(configuration(shapes)).unwrap();
            let result = run(&mut state, &TDPBUSD_0_1_2, std::ptr::null_mut(), 0);
            assert_eq!(result.is_err(), wrong, "{shapes:?}: {result:?}");
        }
        for code in [&TDPBUSD_0_1_1[..], &TDPBSUD_0_1_2, &[0x0f, 0x0b], &[0x90]] {
            let mut state = configured(plain).unwrap();
            assert!(run(&mut state, code, std::ptr::null_mut(), 0).is_err(), "{code:?}");
        }
    }
}
