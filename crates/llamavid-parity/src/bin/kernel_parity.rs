//! Compares the operations of `llamavid-kernels` on a device with their definitions in f64: `kernel_parity [device]`, the first CUDA
//! device unless another is named. Ends with 1 when a number is too far off, and with 3 and the reason when the device cannot be used.

use std::process::ExitCode;

use candle_core::{D, DType, Device, Result, Tensor};
use llamavid_kernels::{
    BlockFormat, CachedRows, DeviceRows, Heads, Mask, Norm, NormPlace, Projection, QuantisedMatrix, Staging,
    Weight, added_projection, attention_block, cached_attention, gelu, gelu_block, largest, layer_norm,
    multi_head_attention, normed_projections, quick_gelu, reads_cache, rms_norm, rotary_embedding,
    rotate_into, swiglu, swiglu_block,
};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const EPS: f64 = 1e-5;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cuda".to_owned());
    let device = match llamavid_runtime::Device::open(&name) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: kernels: {error}");
            return ExitCode::from(3);
        }
    };
    let mut check = Check { device: device.tensors().clone(), failed: 0, seed: 1 };
    match check.all() {
        Ok(()) if check.failed == 0 => ExitCode::SUCCESS,
        Ok(()) => {
            println!("{} comparisons failed", check.failed);
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Check {
    device: Device,
    failed: usize,
    seed: u64,
}

/// What rounding in between may change, against the largest number.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-4,
        DType::F16 => 1e-2,
        _ => 6e-2,
    }
}

impl Check {
    fn all(&mut self) -> Result<()> {
        for dtype in DTYPES {
            self.rows(dtype)?;
            self.attention(dtype)?;
            self.cached(dtype)?;
            self.blocks(dtype)?;
            self.quantised(dtype)?;
            self.one_row(dtype)?;
        }
        self.staging()?;
        let logits = self.numbers(&[3, 32_000], DType::F32)?;
        let expected = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let found = largest(&logits.to_device(&self.device)?)?;
        self.say(
            "largest",
            DType::F32,
            found.iter().zip(&expected).all(|(found, place)| *found == Some(*place)),
            0.0,
        );
        Ok(())
    }

    /// Numbers that follow no pattern, from -1 to 1, on the CPU.
    fn numbers(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                self.seed =
                    self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    }

    /// The same on the device, and in f64 on the CPU.
    fn both(&mut self, shape: &[usize], dtype: DType) -> Result<[Tensor; 2]> {
        let numbers = self.numbers(shape, dtype)?;
        Ok([numbers.to_device(&self.device)?, numbers.to_dtype(DType::F64)?])
    }

    fn say(&mut self, what: &str, dtype: DType, good: bool, error: f64) {
        let outcome = if good { "ok" } else { "FAILED" };
        println!("{outcome:6} {what} in {dtype:?}: largest error {error:.1e}");
        self.failed += usize::from(!good);
    }

    fn compare(
        &mut self,
        what: &str,
        dtype: DType,
        actual: &Tensor,
        expected: &Tensor,
        allowed: f64,
    ) -> Result<()> {
        let actual = actual.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let largest = expected.abs()?.max_all()?.to_scalar::<f64>()?.max(1.0);
        let error = (actual - expected)?.abs()?.max_all()?.to_scalar::<f64>()? / largest;
        // Written so that not-a-number fails.
        self.say(what, dtype, error <= allowed, error);
        Ok(())
    }

    fn rows(&mut self, dtype: DType) -> Result<()> {
        for width in [37, 1408, 4096] {
            let [x, exact] = self.both(&[5, width], dtype)?;
            let [weight, exact_weight] = self.both(&[width], dtype)?;
            let [bias, exact_bias] = self.both(&[width], dtype)?;
            let expected = norm_of(&exact, &exact_weight, Some(&exact_bias))?;
            let name = |operation: &str| format!("{operation}, {width} wide");
            self.compare(
                &name("layer norm"),
                dtype,
                &layer_norm(&x, &weight, &bias, EPS)?,
                &expected,
                tolerance(dtype),
            )?;
            let expected = norm_of(&exact, &exact_weight, None)?;
            self.compare(
                &name("rms norm"),
                dtype,
                &rms_norm(&x, &weight, EPS)?,
                &expected,
                tolerance(dtype),
            )?;
            self.compare(&name("gelu"), dtype, &gelu(&x)?, &exact.gelu_erf()?, tolerance(dtype))?;
            let quick = sigmoid_linear(&exact, 1.702)?;
            self.compare(&name("quick gelu"), dtype, &quick_gelu(&x)?, &quick, tolerance(dtype))?;
            let [up, exact_up] = self.both(&[5, width], dtype)?;
            let expected = (sigmoid_linear(&exact, 1.0)? * &exact_up)?;
            self.compare(&name("swiglu"), dtype, &swiglu(&x, &up)?, &expected, tolerance(dtype))?;
        }
        let [x, exact] = self.both(&[2, 3, 7, 128], dtype)?;
        let [cos, exact_cos] = self.both(&[7, 64], dtype)?;
        let [sin, exact_sin] = self.both(&[7, 64], dtype)?;
        let expected = rotated(&exact, &exact_cos, &exact_sin)?;
        self.compare("rotation", dtype, &rotary_embedding(&x, &cos, &sin)?, &expected, tolerance(dtype))?;
        let [keys, exact_keys] = self.both(&[2, 1, 7, 128], dtype)?;
        let [values, exact_values] = self.both(&[2, 1, 7, 128], dtype)?;
        let [key_cache, value_cache] = [(); 2].map(|()| Tensor::zeros((2, 1, 20, 128), dtype, &self.device));
        let (key_cache, value_cache) = (key_cache?, value_cache?);
        let found = rotate_into([&x, &keys, &values], (&cos, &sin), [&key_cache, &value_cache], 9)?;
        self.compare("rotation beside a cache", dtype, &found, &expected, tolerance(dtype))?;
        let expected = rotated(&exact_keys, &exact_cos, &exact_sin)?;
        self.compare(
            "rotation into a cache",
            dtype,
            &key_cache.narrow(2, 9, 7)?,
            &expected,
            tolerance(dtype),
        )?;
        self.compare("values into a cache", dtype, &value_cache.narrow(2, 9, 7)?, &exact_values, 0.0)
    }

    /// What decoding has: a row, whose norm, projections and residual may be one operation.
    fn one_row(&mut self, dtype: DType) -> Result<()> {
        let (width, inner) = (512, 768);
        let [x, exact] = self.both(&[1, 1, width], dtype)?;
        let [weight, exact_weight] = self.both(&[width], dtype)?;
        let norm = Norm { weight: &weight, bias: None, eps: EPS };
        let normed = norm_of(&exact, &exact_weight, None)?;
        let kinds = [
            ("numbers", [None; 4], tolerance(dtype)),
            (
                "blocks",
                [BlockFormat::Q4K, BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Q4K].map(Some),
                tolerance(dtype).max(2e-2),
            ),
        ];
        for (kind, formats, allowed) in kinds {
            let mut exacts = Vec::new();
            let mut dense = Vec::new();
            let mut blocks = Vec::new();
            let shapes = [[inner, width], [inner, width], [33, width], [width, inner]];
            for (shape, format) in shapes.iter().zip(formats) {
                let numbers = (self.numbers(shape, DType::F32)? * (1.0 / 16.0))?.to_dtype(dtype)?;
                let (exact, placed) = match format {
                    Some(format) => {
                        let matrix = QuantisedMatrix::quantise(&numbers, format)?;
                        (matrix.dequantise()?, Some(matrix.to_device(&self.device)?))
                    }
                    None => (numbers.clone(), None),
                };
                exacts.push(exact.to_dtype(DType::F64)?);
                dense.push(numbers.to_device(&self.device)?);
                blocks.push(placed);
            }
            let projection = |place: usize| Projection {
                weight: blocks[place].as_ref().map_or(Weight::Dense(&dense[place]), Weight::Blocks),
                bias: None,
            };
            let times = |x: &Tensor, place: usize| x.broadcast_matmul(&exacts[place].t()?);
            let found = normed_projections(&x, norm, [projection(0), projection(1), projection(2)])?;
            for (place, found) in found.iter().enumerate() {
                let what = format!("projection {place} of a normed row, {kind}");
                self.compare(&what, dtype, found, &times(&normed, place)?, allowed)?;
            }
            let gate = sigmoid_linear(&times(&normed, 0)?, 1.0)?;
            let expected = (&exact + times(&(gate * times(&normed, 1)?)?, 3)?)?;
            let place = (norm, NormPlace::Before);
            let found = swiglu_block(&x, place, projection(0), projection(1), projection(3))?;
            self.compare(&format!("swiglu block of a row, {kind}"), dtype, &found, &expected, allowed)?;
            let [rows, exact_rows] = self.both(&[1, 1, inner], dtype)?;
            let found = added_projection(&x, projection(3), &rows)?;
            let expected = (&exact + times(&exact_rows, 3)?)?;
            self.compare(&format!("a row plus a projection, {kind}"), dtype, &found, &expected, allowed)?;
        }
        Ok(())
    }

    /// Numbers that a device fetches by itself, from memory that is used again at once.
    fn staging(&mut self) -> Result<()> {
        let mut staging = Staging::default();
        let mut all = Vec::new();
        for count in [5, 100_000, 7, 100_000] {
            let numbers = self.numbers(&[2, count], DType::F32)?.to_vec2::<f32>()?;
            let parts: Vec<_> = numbers.iter().map(Vec::as_slice).collect();
            all.push((numbers.concat(), staging.upload(&parts, (2, count), &self.device)?));
        }
        for (numbers, found) in &all {
            let good = found.flatten_all()?.to_vec1::<f32>()? == *numbers;
            self.say(&format!("{} numbers fetched", numbers.len()), DType::F32, good, 0.0);
        }
        Ok(())
    }

    fn attention(&mut self, dtype: DType) -> Result<()> {
        // B, heads, key heads, queries, keys and width: a visual encoder's, the query model's, prefill and decoding.
        let cases = [
            ("of a visual encoder", [2, 16, 16, 257, 257, 88]),
            ("of a query model", [3, 12, 12, 48, 48, 64]),
            ("of a prompt", [1, 8, 2, 300, 700, 128]),
            ("of one position", [1, 32, 32, 1, 1500, 128]),
            ("of odd heads", [2, 3, 3, 33, 40, 20]),
        ];
        for (what, [batch, heads, key_heads, queries, keys, width]) in cases {
            let [q, exact_q] = self.both(&[batch, queries, heads * width], dtype)?;
            let [k, exact_k] = self.both(&[batch, keys, key_heads * width], dtype)?;
            let [v, exact_v] = self.both(&[batch, keys, key_heads * width], dtype)?;
            let [bias, exact_bias] = self.both(&[batch, 1, 1, keys], DType::F32)?;
            for (mask, name) in [
                (Mask::All, "all"),
                (Mask::Bias(&bias), "a bias"),
                (Mask::Causal { padding: None }, "causal"),
            ] {
                let options = Heads { key_heads, mask, ..Heads::new(heads, width) };
                let exact_mask = match mask {
                    Mask::Bias(_) => exact_bias.clone(),
                    Mask::All => exact_bias.zeros_like()?,
                    Mask::Causal { .. } => causal(queries, keys)?,
                };
                let expected = attended(&exact_q, &exact_k, &exact_v, (heads, key_heads), &exact_mask)?;
                let found = multi_head_attention(&q, &k, &v, &options)?;
                self.compare(
                    &format!("attention {what}, {name}"),
                    dtype,
                    &found,
                    &expected,
                    tolerance(dtype),
                )?;
            }
        }
        Ok(())
    }

    fn cached(&mut self, dtype: DType) -> Result<()> {
        let (heads, key_heads, capacity, length, width) = (8, 2, 900, 777, 128);
        for queries in [1, 40] {
            let [q, exact_q] = self.both(&[1, heads, queries, width], dtype)?;
            if !reads_cache(&q) {
                println!("skipped: cached attention in {dtype:?}: not an operation of this device");
                return Ok(());
            }
            let [k, v] = [
                self.numbers(&[1, key_heads, capacity, width], dtype)?,
                self.numbers(&[1, key_heads, capacity, width], dtype)?,
            ];
            let rows = |x: &Tensor| x.transpose(1, 2)?.contiguous()?.flatten_from(2);
            let expected = |k: &Tensor, v: &Tensor| {
                let [k, v] = [k, v].map(|x| rows(&x.narrow(2, 0, length)?.to_dtype(DType::F64)?));
                attended(&rows(&exact_q)?, &k?, &v?, (heads, key_heads), &causal(queries, length)?)
            };
            let [on_device, values] = [k.to_device(&self.device)?, v.to_device(&self.device)?];
            let found = cached_attention(
                &q,
                CachedRows::Numbers(&on_device),
                CachedRows::Numbers(&values),
                length,
                None,
            )?;
            let what = |name: &str| format!("cached attention of {queries}, {name}");
            self.compare(&what("as numbers"), dtype, &found, &expected(&k, &v)?, tolerance(dtype))?;
            for format in [BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4_0] {
                let (bytes, [exact_k, exact_v]) = in_blocks(format, [&k, &v])?;
                let shape = [1, key_heads, capacity, width];
                let found = match self.device.is_cpu() {
                    true => {
                        let [keys, values] =
                            bytes.each_ref().map(|bytes| CachedRows::Blocks { format, shape, bytes });
                        cached_attention(&q, keys, values, length, None)?
                    }
                    false => {
                        let mut held = [
                            DeviceRows::new(format, shape, &self.device)?,
                            DeviceRows::new(format, shape, &self.device)?,
                        ];
                        held[0].write(&on_device, 0)?;
                        held[1].write(&values, 0)?;
                        cached_attention(
                            &q,
                            CachedRows::Device(&held[0]),
                            CachedRows::Device(&held[1]),
                            length,
                            None,
                        )?
                    }
                };
                self.compare(
                    &what(format.name()),
                    dtype,
                    &found,
                    &expected(&exact_k, &exact_v)?,
                    tolerance(dtype),
                )?;
            }
        }
        Ok(())
    }

    fn blocks(&mut self, dtype: DType) -> Result<()> {
        let (heads, width, inner) = (4, 256, 512);
        let [x, exact_x] = self.both(&[2, 33, width], dtype)?;
        let scaled = |[on_device, exact]: [Tensor; 2]| -> Result<[Tensor; 2]> {
            let shrunk = (exact * (1.0 / 16.0))?;
            let rounded = shrunk.to_dtype(dtype)?;
            Ok([rounded.to_device(on_device.device())?, rounded.to_dtype(DType::F64)?])
        };
        let [weight, exact_weight] = self.both(&[width], dtype)?;
        let [bias, exact_bias] = self.both(&[width], dtype)?;
        let norm = Norm { weight: &weight, bias: Some(&bias), eps: EPS };
        let [packed, exact_packed] = scaled(self.both(&[3 * width, width], dtype)?)?;
        let [packed_bias, exact_packed_bias] = self.both(&[3 * width], dtype)?;
        let [output, exact_output] = scaled(self.both(&[width, width], dtype)?)?;
        let [output_bias, exact_output_bias] = self.both(&[width], dtype)?;
        let [up, exact_up] = scaled(self.both(&[inner, width], dtype)?)?;
        let [up_bias, exact_up_bias] = self.both(&[inner], dtype)?;
        let [gate, exact_gate] = scaled(self.both(&[inner, width], dtype)?)?;
        let [down, exact_down] = scaled(self.both(&[width, inner], dtype)?)?;
        for (place, name) in [(NormPlace::Before, "before"), (NormPlace::After(None), "after")] {
            let whole = |inner: &dyn Fn(&Tensor) -> Result<Tensor>| match place {
                NormPlace::Before => &exact_x + inner(&norm_of(&exact_x, &exact_weight, Some(&exact_bias))?)?,
                NormPlace::After(_) => {
                    norm_of(&(&exact_x + inner(&exact_x)?)?, &exact_weight, Some(&exact_bias))
                }
            };
            let linear = |x: &Tensor, weight: &Tensor, bias: &Tensor| {
                x.broadcast_matmul(&weight.t()?)?.broadcast_add(bias)
            };
            let projection = |weight, bias| Projection { weight: Weight::Dense(weight), bias: Some(bias) };
            let sources = [projection(&packed, &packed_bias)];
            let options = Heads::new(heads, width / heads);
            let found =
                attention_block(&x, (norm, place), &sources, projection(&output, &output_bias), &options)?;
            let expected = whole(&|rows| {
                let all = linear(rows, &exact_packed, &exact_packed_bias)?;
                let part = |index: usize| all.narrow(2, index * width, width)?.contiguous();
                let none = Tensor::zeros((1, 1, 1, 33), DType::F64, &Device::Cpu)?;
                linear(
                    &attended(&part(0)?, &part(1)?, &part(2)?, (heads, heads), &none)?,
                    &exact_output,
                    &exact_output_bias,
                )
            })?;
            self.compare(
                &format!("attention block, norm {name}"),
                dtype,
                &found,
                &expected,
                tolerance(dtype),
            )?;
            let found =
                gelu_block(&x, (norm, place), projection(&up, &up_bias), projection(&down, &output_bias))?;
            let expected = whole(&|rows| {
                linear(&linear(rows, &exact_up, &exact_up_bias)?.gelu_erf()?, &exact_down, &exact_output_bias)
            })?;
            self.compare(&format!("gelu block, norm {name}"), dtype, &found, &expected, tolerance(dtype))?;
            let found = swiglu_block(
                &x,
                (norm, place),
                projection(&gate, &up_bias),
                projection(&up, &up_bias),
                projection(&down, &output_bias),
            )?;
            let expected = whole(&|rows| {
                let gate = sigmoid_linear(&linear(rows, &exact_gate, &exact_up_bias)?, 1.0)?;
                linear(&(gate * linear(rows, &exact_up, &exact_up_bias)?)?, &exact_down, &exact_output_bias)
            })?;
            self.compare(&format!("swiglu block, norm {name}"), dtype, &found, &expected, tolerance(dtype))?;
        }
        Ok(())
    }

    fn quantised(&mut self, dtype: DType) -> Result<()> {
        // A device rounds what it multiplies with to 8 bits, and so do many rows on a processor with integer dot products.
        let allowed = tolerance(dtype).max(2e-2);
        let weight = self.numbers(&[64, 512], DType::F32)?;
        for format in
            [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4K, BlockFormat::Q5K, BlockFormat::Q6K]
        {
            let matrix = QuantisedMatrix::quantise(&weight, format)?;
            let placed = matrix.to_device(&self.device)?;
            let exact_weight = matrix.dequantise()?.to_dtype(DType::F64)?;
            for rows in [1, 7, 40, 100] {
                let [x, exact] = self.both(&[rows, 512], dtype)?;
                let expected = exact.matmul(&exact_weight.t()?)?;
                self.compare(
                    &format!("{rows} rows times {}", format.name()),
                    dtype,
                    &placed.linear(&x)?,
                    &expected,
                    allowed,
                )?;
            }
        }
        Ok(())
    }
}

/// Bytes of rows in blocks, and what they stand for.
fn in_blocks(format: BlockFormat, tensors: [&Tensor; 2]) -> Result<([Vec<u8>; 2], [Tensor; 2])> {
    let matrix = |x: &Tensor| QuantisedMatrix::quantise(&x.flatten_to(2)?, format);
    let [k, v] = [matrix(tensors[0])?, matrix(tensors[1])?];
    let exact = |matrix: &QuantisedMatrix, like: &Tensor| matrix.dequantise()?.reshape(like.shape());
    let numbers = [exact(&k, tensors[0])?, exact(&v, tensors[1])?];
    Ok(([k.bytes().to_vec(), v.bytes().to_vec()], numbers))
}

fn norm_of(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let centred = match bias {
        Some(_) => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        None => x.clone(),
    };
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    let normed = centred.broadcast_div(&scale)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => normed.broadcast_add(bias),
        None => Ok(normed),
    }
}

/// `x / (1 + e^(-factor x))`.
fn sigmoid_linear(x: &Tensor, factor: f64) -> Result<Tensor> {
    x / ((x * -factor)?.exp()? + 1.0)?
}

fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(3)? / 2;
    let (low, high) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let first = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let second = (low.broadcast_mul(sin)? + high.broadcast_mul(cos)?)?;
    Tensor::cat(&[first, second], 3)
}

/// 0 where a row may look, (1, 1, Q, K).
fn causal(queries: usize, keys: usize) -> Result<Tensor> {
    let hidden = (0..queries * keys).map(|place| {
        let (query, key) = (place / keys, place % keys);
        if key + queries > keys + query { -1e30 } else { 0f64 }
    });
    // With fewer keys than queries no causal mask is asked for.
    Tensor::from_vec(hidden.collect::<Vec<_>>(), (1, 1, queries, keys), &Device::Cpu)
}

/// Scores, softmax and sum of rows (B, Q, H · d), one after the other.
fn attended(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (heads, key_heads): (usize, usize),
    bias: &Tensor,
) -> Result<Tensor> {
    let (batch, queries, all) = q.dims3()?;
    let (keys, width) = (k.dim(1)?, all / heads);
    let split = |x: &Tensor, rows: usize, heads: usize| {
        x.reshape((batch, rows, heads, width))?.transpose(1, 2)?.contiguous()
    };
    let repeat = |x: &Tensor| {
        let x = split(x, keys, key_heads)?.unsqueeze(2)?;
        let x = x.broadcast_as((batch, key_heads, heads / key_heads, keys, width))?.contiguous()?;
        x.reshape((batch, heads, keys, width))
    };
    let scores = split(q, queries, heads)?.matmul(&repeat(k)?.t()?.contiguous()?)?;
    let scores = (scores / (width as f64).sqrt())?.broadcast_add(bias)?;
    let shares = candle_nn::ops::softmax(&scores, D::Minus1)?;
    let attended = shares.matmul(&repeat(v)?)?;
    attended.transpose(1, 2)?.reshape((batch, queries, all))
}
