import {
  callNative,
  callNativeAsync,
  type VisualTokens as NativeVisualTokens,
  nativeHandle,
} from '@llamavid/native';

/**
 * A video's tokens for one question: for each frame a context token, then the content tokens. Holds device
 * memory until `close`.
 */
export class VisualTokens implements Disposable {
  readonly #native: NativeVisualTokens;

  /** @internal Made by `TokenGenerator.generate`. */
  constructor(native: NativeVisualTokens) {
    this.#native = native;
  }

  get frameCount(): number {
    return callNative(() => this.#native.frameCount);
  }

  /** Tokens of one frame: the context token and the content tokens. */
  get tokensPerFrame(): number {
    return callNative(() => this.#native.tokensPerFrame);
  }

  /** Frames times tokens of a frame, language width. */
  get shape(): readonly number[] {
    return callNative(() => this.#native.shape);
  }

  /** The numbers, row-major of `shape`. A copy. */
  toFloat32Array(): Promise<Float32Array> {
    return callNativeAsync(() => this.#native.toFloat32Array());
  }

  /** @internal The handle that the next stage gives to the addon. */
  [nativeHandle](): NativeVisualTokens {
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
