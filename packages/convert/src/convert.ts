/** Parts of a model from many files, made one folder. */
import { LlamaVidError } from '@llamavid/errors';
import { Conversion, callNative, withCancellation } from '@llamavid/native';

export interface ConvertOptions {
  /** The dtype of the weights. Default: each keeps its own. */
  readonly dtype?: 'f32' | 'bf16' | 'f16' | undefined;
  /** The block format of the language model, which then is a GGUF file. Default: it stays as it is. */
  readonly quantize?: 'q8_0' | 'q4_0' | 'q4_k' | 'q5_k' | 'q6_k' | undefined;
  /**
   * Whether the rows of the language model's matrices in blocks are interleaved: the same numbers in as many bytes, in the order in which
   * answers are computed quickest here. llama.cpp refuses such a file. Wants `quantize`, or a GGUF file in blocks among the inputs.
   * Default `false`.
   */
  readonly interleave?: boolean | undefined;
  /** Whether visual encoder and token generator are written in 8 bits. Default `false`. */
  readonly quantizeVision?: boolean | undefined;
  /** Bytes of a file of weights at most, unless one weight is larger. Default 5 GB. */
  readonly shardBytes?: number | undefined;
  /** Stops with `ABORTED`, and nothing is left. */
  readonly signal?: AbortSignal | undefined;
  /** Called now and then while it is written. */
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

export interface ConvertProgress {
  /** Bytes written. */
  readonly done: number;
  /** Bytes of the result. */
  readonly total: number;
}

export interface Converted {
  readonly folder: string;
  /** Bytes of all files. */
  readonly bytes: number;
  /** Weights. */
  readonly tensors: number;
  /** What you should know: which files were found beside the inputs. */
  readonly notes: readonly string[];
}

/**
 * Makes one folder of `inputs`, which are known by their content: a LLaMA-VID folder, a language model's folder or GGUF file,
 * `eva_vit_g.pth`, `mm_projector.bin` of stage 1, a Q-Former file, an image processor's folder, a folder with `vocab.txt`.
 *
 * Nothing is at `output` until all of it is.
 *
 * @throws `MODEL_NOT_FOUND`, `MODEL_FILE_MISSING`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`, `DISK_FULL`, `STORE_LOCKED`,
 * `INVALID_ARGUMENT` for an output that is there already and for `interleave` without blocks, `ABORTED`.
 */
export async function convert(
  inputs: readonly string[],
  output: string,
  options: ConvertOptions = {},
): Promise<Converted> {
  const { dtype, quantize, interleave, quantizeVision, shardBytes, signal, onProgress } = options;
  if (inputs.length === 0) throw wrong('there are no inputs', 'Name the files and folders of the model.');
  if (output === '') throw wrong('the output is empty', 'Name the folder to make.');
  return withCancellation(signal, async (cancellation) => {
    const request = {
      inputs: [...inputs],
      output,
      ...(dtype !== undefined && { dtype }),
      ...(quantize !== undefined && { quantize }),
      ...(interleave !== undefined && { interleave }),
      ...(quantizeVision !== undefined && { quantizeVision }),
      ...(shardBytes !== undefined && { shardBytes }),
    };
    using conversion = callNative(() => Conversion.start(request, cancellation));
    for (;;) {
      const report = await conversion.next();
      if (report === null) throw new LlamaVidError('INTERNAL', 'The conversion ended without a result.');
      if (report.converted !== undefined) return report.converted;
      onProgress?.({ done: report.done, total: report.total });
    }
  });
}

function wrong(message: string, hint: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', message, { hint });
}
