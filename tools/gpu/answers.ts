/** The embedded model's answers about videos of its world that it was not trained on, on a device and on the CPU. */
import { join } from 'node:path';
import { conversation, LanguageModel } from '../../packages/llm/dist/index.js';
import { Pixels, type RgbFrame, WorldVideo } from '../../packages/native/dist/index.js';
import { TokenGenerator } from '../../packages/tokens/dist/index.js';
import { VisualEncoder } from '../../packages/vision/dist/index.js';
import { root } from './parts.ts';

const folder = join(root, 'packages/tiny/model');
/** That of the published measurements; training has others. */
const SEED = 9001;

/** A question with what was answered here and on the CPU, and what is right. */
export interface Compared {
  readonly question: string;
  readonly answer: string;
  readonly here: string;
  readonly cpu: string;
}

/** Asks `count` questions about pictures, clips and videos with cuts. Several devices share each layer. */
export async function compareAnswers(
  device: string,
  dtype: 'f32' | 'auto',
  count: number,
): Promise<Compared[]> {
  using here = await Answerer.load(device, dtype);
  using cpu = await Answerer.load('cpu', 'f32');
  const compared: Compared[] = [];
  for (let index = 0; compared.length < count; index += 1) {
    for (const kind of ['image', 'clip', 'multi'] as const) {
      const video = new WorldVideo({ seed: SEED, index, kind, neverTrained: 'allow', phrasing: 'mixed' });
      const asked = video.questions.slice(0, count - compared.length);
      if (asked.length === 0) break;
      const frames = await framesOf(video);
      const questions = asked.map(({ question }) => question);
      const [first, second] = [await here.answers(frames, questions), await cpu.answers(frames, questions)];
      for (const [at, { question, answer }] of asked.entries()) {
        compared.push({ question, answer, here: first[at] ?? '', cpu: second[at] ?? '' });
      }
    }
  }
  return compared;
}

/** Frames as a model sees them: one a second. */
async function framesOf(video: WorldVideo): Promise<RgbFrame[]> {
  const frames: RgbFrame[] = [];
  for (let second = 0; second < video.framesAtOneASecond; second += 1) {
    const data = await video.renderFrame(second * video.fps);
    frames.push({ data, width: video.width, height: video.height });
  }
  return frames;
}

/** The embedded model on one device or several. */
class Answerer implements Disposable {
  readonly #encoder: VisualEncoder;
  readonly #generator: TokenGenerator;
  readonly #model: LanguageModel;

  private constructor(encoder: VisualEncoder, generator: TokenGenerator, model: LanguageModel) {
    this.#encoder = encoder;
    this.#generator = generator;
    this.#model = model;
  }

  static async load(device: string, dtype: 'f32' | 'auto'): Promise<Answerer> {
    const options = { device: device as 'cuda', dtype };
    return new Answerer(
      await VisualEncoder.load(folder, options),
      await TokenGenerator.load(folder, options),
      await LanguageModel.load(folder, { ...options, split: device.includes(',') ? 'tensor' : 'layers' }),
    );
  }

  async answers(frames: RgbFrame[], questions: readonly string[]): Promise<string[]> {
    using pixels = Pixels.fromRgb(frames, this.#encoder.preprocessing);
    using features = await this.#encoder.encode(pixels);
    using session = this.#model.createSession();
    const template = conversation(this.#model.conversation ?? 'llava_v1');
    const texts: string[] = [];
    for (const question of questions) {
      using tokens = await this.#generator.generate(features, question);
      const prompt = template.render([{ question: `${this.#model.imagePlaceholder}\n${question}` }]);
      const options = { visualTokens: [tokens], stop: template.stop, maxNewTokens: 200 };
      texts.push((await session.generate(prompt, options).result()).text);
    }
    return texts;
  }

  [Symbol.dispose](): void {
    for (const part of [this.#encoder, this.#generator, this.#model]) part.close();
  }
}
