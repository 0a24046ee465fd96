import { errorCodes as listed } from '@llamavid/errors';
import { describe, expect, it } from 'vitest';
import {
  Cancellation,
  callNative,
  callNativeAsync,
  conversationStop,
  conversationTemplates,
  Device,
  errorCodes,
  memoryUsage,
  Pixels,
  type Preprocessing,
  renderConversation,
  VisualFeatures,
  withCancellation,
} from '../src/index.js';

const preprocessing: Preprocessing = { size: 4, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], fit: 'crop' };
const white = { data: new Uint8Array(8 * 6 * 3).fill(255), width: 8, height: 6 };
const code = (name: string) => expect.objectContaining({ name: 'LlamaVidError', code: name });

/** A call with arguments that TypeScript would refuse. */
// biome-ignore lint/suspicious/noExplicitAny: what the test is about
const wrong = (argument: unknown) => argument as any;

it('has the codes of @llamavid/errors, in their order', () => {
  expect(errorCodes()).toEqual([...listed]);
});

it('measures memory in bytes', () => {
  expect(memoryUsage().peakRssBytes).toBeGreaterThan(10_000_000);
});

describe('Device', () => {
  it('opens the CPU', () => {
    using device = callNative(() => Device.open('cpu'));
    expect([device.kind, device.name]).toEqual(['cpu', 'cpu']);
    expect(device).toBeInstanceOf(Device);
  });

  it('refuses names and devices that do not exist', () => {
    expect(() => callNative(() => Device.open('gpu'))).toThrow(code('INVALID_ARGUMENT'));
    expect(() => callNative(() => Device.open('cuda:63'))).toThrow(code('DEVICE_UNAVAILABLE'));
    expect(() => callNative(() => Device.open(wrong(7)))).toThrow(code('INVALID_ARGUMENT'));
  });

  it('closes twice, and is closed then', () => {
    const device = Device.open('cpu');
    device.close();
    device.close();
    expect(() => callNative(() => device.name)).toThrow(code('HANDLE_CLOSED'));
  });
});

describe('Pixels', () => {
  it('normalises frames in their order', () => {
    const black = { ...white, data: new Uint8Array(white.data.length) };
    const pixels = Pixels.fromRgb([white, black], preprocessing);
    expect([pixels.frameCount, pixels.size]).toEqual([2, 4]);
    const values = pixels.toFloat32Array();
    expect(values.length).toBe(2 * 3 * 4 * 4);
    expect(values.slice(0, 48).every((value) => value === 1)).toBe(true);
    expect(values.slice(48).every((value) => value === -1)).toBe(true);
    pixels.close();
    pixels.close();
    expect(() => callNative(() => pixels.frameCount)).toThrow(code('HANDLE_CLOSED'));
  });

  it('reads views and strides', () => {
    const buffer = new Uint8Array(5 + 6 * 32);
    for (let row = 0; row < 6; row++) buffer.fill(255, 5 + row * 32, 5 + row * 32 + 24);
    const padded = Pixels.fromRgb(
      [{ data: buffer.subarray(5), width: 8, height: 6, stride: 32 }],
      preprocessing,
    );
    expect(padded.toFloat32Array()).toEqual(Pixels.fromRgb([white], preprocessing).toFloat32Array());
  });

  it.each([
    ['no frame', [], preprocessing],
    ['too few bytes', [{ ...white, height: 7 }], preprocessing],
    ['a width of zero', [{ ...white, width: 0 }], preprocessing],
    ['half a pixel', [{ ...white, width: 7.5 }], preprocessing],
    ['a negative height', [{ ...white, height: -1 }], preprocessing],
    ['a stride below a row', [{ ...white, stride: 23 }], preprocessing],
    ['text for bytes', [{ ...white, data: wrong('white') }], preprocessing],
    ['floats for bytes', [{ ...white, data: wrong(new Float32Array(200)) }], preprocessing],
    ['no size', [white], { ...preprocessing, size: 0 }],
    ['a size beyond reason', [white], { ...preprocessing, size: 2 ** 40 }],
    ['two means', [white], { ...preprocessing, mean: [0.5, 0.5] }],
    ['a deviation of zero', [white], { ...preprocessing, std: [0.5, 0, 0.5] }],
    ['another fit', [white], { ...preprocessing, fit: wrong('stretch') }],
    ['nothing', wrong(undefined), preprocessing],
  ])('refuses %s', (_, frames, how) => {
    expect(() => callNative(() => Pixels.fromRgb(frames, how))).toThrow(code('INVALID_ARGUMENT'));
  });
});

describe('VisualFeatures', () => {
  it('gives back what it took', async () => {
    using device = Device.open('cpu');
    const data = Float32Array.from({ length: 24 }, (_, index) => index / 7);
    using features = await VisualFeatures.fromFloat32Array(data, [2, 3, 4], device, 'pixels');
    expect([features.frameCount, features.shape]).toEqual([2, [2, 3, 4]]);
    expect(await features.toFloat32Array()).toEqual(data);
    using twice = await VisualFeatures.concatenate([features, features]);
    expect(twice.shape).toEqual([4, 3, 4]);
    features.close();
    await expect(callNativeAsync(features.toFloat32Array())).rejects.toEqual(code('HANDLE_CLOSED'));
    expect(await twice.toFloat32Array()).toEqual(Float32Array.of(...data, ...data));
  });

  it('keeps what a promise works on when it is closed behind the call', async () => {
    using device = Device.open('cpu');
    const features = await VisualFeatures.fromFloat32Array(
      Float32Array.of(1, 2),
      [1, 2, 1],
      device,
      'pixels',
    );
    const values = features.toFloat32Array();
    features.close();
    expect(await values).toEqual(Float32Array.of(1, 2));
  });

  it('refuses what cannot be features', async () => {
    using device = Device.open('cpu');
    const make = (data: Float32Array, shape: number[], kind = 'pixels') =>
      callNativeAsync(() => VisualFeatures.fromFloat32Array(data, shape, device, wrong(kind)));
    await expect(make(new Float32Array(5), [1, 2, 3])).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(make(new Float32Array(6), [2, 3])).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(make(new Float32Array(0), [0, 2, 3])).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(make(Float32Array.of(1, Number.NaN), [1, 2, 1])).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(make(new Float32Array(6), [1, 2, 3], 'other')).rejects.toEqual(code('INVALID_ARGUMENT'));
    device.close();
    await expect(make(new Float32Array(6), [1, 2, 3])).rejects.toEqual(code('HANDLE_CLOSED'));
    await expect(callNativeAsync(VisualFeatures.concatenate([]))).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(callNativeAsync(() => VisualFeatures.concatenate(wrong([{}])))).rejects.toEqual(
      code('INVALID_ARGUMENT'),
    );
  });
});

describe('conversations', () => {
  it('renders the templates', () => {
    expect(conversationTemplates()).toContain('vicuna_v1');
    expect(conversationStop('vicuna_v1')).toBe('</s>');
    const text = renderConversation('vicuna_v1', [
      { question: 'One?', answer: 'Two.' },
      { question: 'Three?' },
    ]);
    expect(text).toMatch(/USER: One\? ASSISTANT: Two\.<\/s>USER: Three\? ASSISTANT:$/);
    expect(() => callNative(() => conversationStop('nobody'))).toThrow(code('INVALID_ARGUMENT'));
  });
});

describe('errors', () => {
  it('has message, hint and cause', () => {
    const written = Object.assign(new Error('[MODEL_INVALID] a\nb\nhint: c'), { code: 'GenericFailure' });
    const throws = () => {
      throw written;
    };
    expect(() => callNative(throws)).toThrow(
      expect.objectContaining({ code: 'MODEL_INVALID', message: 'a\nb', hint: 'c', cause: written }),
    );
  });

  it('is a bug when nobody wrote a code', () => {
    const throws = () => {
      throw new Error('segment 7');
    };
    expect(() => callNative(throws)).toThrow(code('INTERNAL'));
  });
});

describe('withCancellation', () => {
  it('does not begin when the signal was aborted before', async () => {
    let began = false;
    const work = async () => {
      began = true;
    };
    const reason = new Error('changed my mind');
    await expect(withCancellation(AbortSignal.abort(reason), work)).rejects.toMatchObject({
      code: 'ABORTED',
      cause: reason,
    });
    expect(began).toBe(false);
  });

  it('raises the flag when the signal aborts', async () => {
    const controller = new AbortController();
    const work = withCancellation(controller.signal, (cancellation) => {
      expect(cancellation).toBeInstanceOf(Cancellation);
      return new Promise((_, reject) => {
        cancellation.cancel = () => reject(new Error('[ABORTED] between steps'));
      });
    });
    controller.abort('enough');
    await expect(work).rejects.toMatchObject({ code: 'ABORTED', cause: 'enough' });
  });

  it('gives the result of work without a signal', async () => {
    expect(await withCancellation(undefined, async () => 7)).toBe(7);
  });
});
