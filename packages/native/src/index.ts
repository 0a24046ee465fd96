import { LlamaVidError } from '@llamavid/errors';
import type * as Binding from './binding.js';
import { callNative, callNativeAsync } from './call-native.js';
import { loadAddon } from './load-addon.js';

export type {
  DecodedImage,
  GenerateRequest,
  GenerationDefaults,
  LoadOptions,
  Preprocessing,
  RgbFrame,
} from './binding.js';
export { callNative, callNativeAsync };

const addon = loadAddon();

/** Makes a handle end with the block that holds it. */
function disposable<T extends { close(): void }>(prototype: T): void {
  Object.defineProperty(prototype, Symbol.dispose, {
    value(this: T) {
      this.close();
    },
  });
}
disposable(addon.Device.prototype);

/** The key under which a public class hands its native handle to a sister package. */
export const nativeHandle: unique symbol = Symbol.for('llamavid.nativeHandle') as never;

export const Device = addon.Device as unknown as { open(name: string): Device };
export type Device = Binding.Device & Disposable;
export const Cancellation = addon.Cancellation;
export type Cancellation = Binding.Cancellation;
export const Pixels = addon.Pixels;
export type Pixels = Binding.Pixels;
export const PixelChannel = addon.PixelChannel;
export type PixelChannel = Binding.PixelChannel;
export const VisualEncoder = addon.VisualEncoder;
export type VisualEncoder = Binding.VisualEncoder;
export const VisualFeatures = addon.VisualFeatures;
export type VisualFeatures = Binding.VisualFeatures;
export const TokenGenerator = addon.TokenGenerator;
export type TokenGenerator = Binding.TokenGenerator;
export const VisualTokens = addon.VisualTokens;
export type VisualTokens = Binding.VisualTokens;
export const LanguageModel = addon.LanguageModel;
export type LanguageModel = Binding.LanguageModel;
export const Session = addon.Session;
export type Session = Binding.Session;

export const { conversationStop, conversationTemplates, decodeImage, errorCodes, renderConversation } = addon;

/**
 * Runs native work that `signal` can stop between its steps.
 *
 * @throws LlamaVidError `ABORTED` when the signal was or is aborted.
 */
export async function withCancellation<T>(
  signal: AbortSignal | undefined,
  work: (cancellation: Cancellation) => Promise<T>,
): Promise<T> {
  if (signal?.aborted) throw new LlamaVidError('ABORTED', 'the work was cancelled', { cause: signal.reason });
  const cancellation = new Cancellation();
  const cancel = () => cancellation.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    return await callNativeAsync(callNative(() => work(cancellation)));
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}
