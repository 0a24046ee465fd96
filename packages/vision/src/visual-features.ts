import {
  callNative,
  callNativeAsync,
  Device,
  VisualFeatures as NativeVisualFeatures,
  nativeHandle,
} from '@llamavid/native';

/**
 * Where features come from: `pixels` rows start with the class row, `precomputed` ones (long video) have it
 * already cut off. The two differ by that row in what the query model sees.
 */
export type FeatureKind = 'pixels' | 'precomputed';

/**
 * Question-independent features of a video or picture; one handle serves many questions. Holds device memory
 * until `close`.
 */
export class VisualFeatures implements Disposable {
  readonly #native: NativeVisualFeatures;

  /** @internal Made by `VisualEncoder.encode`. */
  constructor(native: NativeVisualFeatures) {
    this.#native = native;
  }

  /**
   * Takes features that were made before: `data` is row-major of `shape` (frames, rows of a frame, visual
   * width).
   *
   * @param device `auto`, `cpu`, `cuda` or `cuda:N`; the device of the token generator that will read them.
   */
  static async fromFloat32Array(
    data: Float32Array,
    shape: readonly [frames: number, rows: number, width: number],
    options: { kind?: FeatureKind; device?: string } = {},
  ): Promise<VisualFeatures> {
    using device = callNative(() => Device.open(options.device ?? 'auto'));
    const make = () =>
      NativeVisualFeatures.fromFloat32Array(data, [...shape], device, options.kind ?? 'pixels');
    return new VisualFeatures(await callNativeAsync(make));
  }

  /**
   * The frames of all parts, in the order given. The parts stay open; one that is closed at once, behind this call, is freed as
   * soon as it is copied.
   */
  static async concatenate(parts: readonly VisualFeatures[]): Promise<VisualFeatures> {
    const natives = parts.map((part) => part.#native);
    return new VisualFeatures(await callNativeAsync(() => NativeVisualFeatures.concatenate(natives)));
  }

  /** Frames encoded, in order of their timestamps. */
  get frameCount(): number {
    return callNative(() => this.#native.frameCount);
  }

  /** Frames that the encoder ran for to make these: none for stored ones, and none for a frame that equals the one before it. */
  get encodedFrameCount(): number {
    return callNative(() => this.#native.encodedFrameCount);
  }

  /** Frames, rows of a frame, visual width. */
  get shape(): readonly number[] {
    return callNative(() => this.#native.shape);
  }

  /** The numbers, row-major of `shape`. A copy. */
  toFloat32Array(): Promise<Float32Array> {
    return callNativeAsync(() => this.#native.toFloat32Array());
  }

  /** @internal The handle that the next stage gives to the addon. */
  [nativeHandle](): NativeVisualFeatures {
    return this.#native;
  }

  /** Frees the device memory. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
