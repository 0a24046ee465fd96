import {
  callNative,
  Device,
  VisualEncoder as NativeVisualEncoder,
  nativeHandle,
  type Pixels,
  type Preprocessing,
  withCancellation,
} from '@llamavid/native';
import { VisualFeatures } from './visual-features.js';

/** `auto` takes the first CUDA device that works, else the CPU. */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | `${string},${string}`;

/** What the weights are computed in. `f32` is exact; `auto` fits the device. */
export type Dtype = 'auto' | 'f32' | 'bf16' | 'f16';

export interface LoadOptions {
  /** Default `auto`. */
  device?: DeviceName | undefined;
  /** Default `auto`. */
  dtype?: Dtype | undefined;
  /** How many bits matrices of weights are held in. Default `16bit`, which leaves them as the file has them. */
  load?: '16bit' | '8bit' | undefined;
  /** Stops loading; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

export interface EncodeOptions {
  /** Read between layers; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

/**
 * The visual encoder of a model folder: pixels in, one row of features a patch out. Holds the weights until
 * `close`.
 */
export class VisualEncoder implements Disposable {
  readonly #native: NativeVisualEncoder;
  /** Where the weights are: `cpu` or `cuda:N`. */
  readonly device: string;

  /** @internal Made by `VisualEncoder.load`. */
  constructor(native: NativeVisualEncoder, device: string) {
    this.#native = native;
    this.device = device;
  }

  /** Loads the encoder of a model folder, and nothing else of it. Runs outside the event loop's thread. */
  static async load(folder: string, options: LoadOptions = {}): Promise<VisualEncoder> {
    using device = callNative(() => Device.open(options.device ?? 'auto'));
    const native = await withCancellation(options.signal, (cancellation) =>
      NativeVisualEncoder.load(folder, {
        device,
        dtype: options.dtype ?? 'auto',
        load: options.load ?? '16bit',
        cancellation,
      }),
    );
    return new VisualEncoder(native, device.name);
  }

  /** How frames become the pixels that this encoder reads. */
  get preprocessing(): Preprocessing {
    return callNative(() => this.#native.preprocessing);
  }

  /** Patches of a frame, the class row not counted. */
  get patchCount(): number {
    return callNative(() => this.#native.patchCount);
  }

  /** Width of a feature row. */
  get width(): number {
    return callNative(() => this.#native.width);
  }

  /** What the weights are computed in, `auto` resolved. */
  get dtype(): string {
    return callNative(() => this.#native.dtype);
  }

  /**
   * Pixels (F, 3, S, S) give features (F, P + 1, V), class row first. A frame that equals the one before it bit for bit shares its
   * features, also where that was the last one of an earlier call. The pixels stay open.
   */
  async encode(pixels: Pixels, options: EncodeOptions = {}): Promise<VisualFeatures> {
    const encode = (cancellation: Parameters<NativeVisualEncoder['encode']>[1]) =>
      this.#native.encode(pixels, cancellation);
    return new VisualFeatures(await withCancellation(options.signal, encode));
  }

  /** @internal The handle that the store gives to the addon. */
  [nativeHandle](): NativeVisualEncoder {
    return this.#native;
  }

  /** Frees the weights. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
