// Long videos with the embedded model: frames a second and memory of each phase, how both grow, and what a second question costs:
// `pnpm bench:long [minutes …]`, by default 10 60 180; `pnpm bench:long 1 2` is over soon. Writes a Markdown table to stdout.
// Each phase is a process of its own, so that its peak of memory is its own.
import { execFileSync, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { modelPath } from '../../packages/tiny/dist/index.js';
import { openMedia, writeVideo } from '../../packages/video/dist/index.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const cli = join(root, 'packages/cli/dist/main.js');
const fixture = (name: string) => join(root, 'fixtures/world/media', name);
/** Frames of the file for each that is looked at. */
const SOURCE_FPS = 4;
/** The embedded model's context is stretched to hold three hours. Its answers are no longer worth reading, its costs are the same. */
const CONTEXT = 32_768;

interface Measured {
  minutes: number;
  frames: number;
  encode: { seconds: number; framesPerSecond: number; peak: number };
  storeBytes: number;
  first: Answer;
  second: Answer;
}

/** What of the command's JSON is read. */
interface Output {
  sampling: { frames: number };
  work: { framesDecoded: number; framesEncoded: number };
  timings: Record<'decodeMs' | 'encodeMs' | 'tokensMs' | 'prefillMs', number>;
}

interface Answer {
  seconds: number;
  decode: number;
  encode: number;
  tokens: number;
  prefill: number;
  framesDecoded: number;
  framesEncoded: number;
  peak: number;
}

const minutes = process.argv.slice(2).map(Number);
const place = mkdtempSync(join(tmpdir(), 'llamavid-long-'));
try {
  const model = stretchedModel();
  const measured: Measured[] = [];
  for (const length of minutes.length > 0 ? minutes : [10, 60, 180]) {
    const video = join(place, `${length}.mp4`);
    await loopFixtures(video, length * 60);
    measured.push(await measure(model, video, length));
    rmSync(video);
  }
  report(measured);
} finally {
  rmSync(place, { recursive: true, force: true });
}

/** The embedded model with a longer context, by the linear scaling of positions that the long-video models use. */
function stretchedModel(): string {
  const folder = join(place, 'model');
  cpSync(modelPath, folder, { recursive: true });
  const file = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  config.rope_scaling = { type: 'linear', factor: CONTEXT / config.max_position_embeddings };
  writeFileSync(file, JSON.stringify(config));
  // It says how long config.json is.
  rmSync(join(folder, 'manifest.json'), { force: true });
  return folder;
}

/** A video of this length: clips of the toy world, one after the other, again and again. */
async function loopFixtures(path: string, seconds: number): Promise<void> {
  if (existsSync(path)) return;
  const frames: Uint8Array[] = [];
  let [width, height] = [0, 0];
  for (const name of ['multi-010.mp4', 'multi-011.mp4', 'multi-012.mp4', 'multi-013.mp4']) {
    await using media = await openMedia(fixture(name), { fps: SOURCE_FPS });
    if (frames.length === 0) ({ width, height } = media.info);
    if (media.info.width !== width || media.info.height !== height) continue;
    for await (const frame of media.frames()) frames.push(frame.data);
  }
  async function* loop() {
    for (let frame = 0; frame < seconds * SOURCE_FPS; frame += 1)
      yield frames[frame % frames.length] as Uint8Array;
  }
  await writeVideo(path, loop(), { width, height, fps: SOURCE_FPS, preset: 'ultrafast' });
}

async function measure(model: string, video: string, length: number): Promise<Measured> {
  const store = join(place, `store-${length}`);
  const common = ['--model', model, '--device', 'cpu', '--dtype', 'f32', '--json', '--quiet'];
  const ask = async (question: string, folder: string): Promise<Answer> => {
    const args = ['ask', video, question, '--store', folder, '--max-new-tokens', '16', ...common];
    const { seconds, result, peak } = await run(args);
    const { work, timings } = result;
    return {
      seconds,
      decode: timings.decodeMs / 1000,
      encode: timings.encodeMs / 1000,
      tokens: timings.tokensMs / 1000,
      prefill: timings.prefillMs / 1000,
      framesDecoded: work.framesDecoded,
      framesEncoded: work.framesEncoded,
      peak,
    };
  };
  const encoded = await run(['encode', video, '-o', join(place, 'encoded'), ...common]);
  const { frames } = encoded.result.sampling;
  const framesPerSecond =
    frames / ((encoded.result.timings.decodeMs + encoded.result.timings.encodeMs) / 1000);
  rmSync(join(place, 'encoded'), { recursive: true });
  const first = await ask('what appears first?', store);
  const second = await ask('where is the red star at the end?', store);
  const storeBytes = Number(execFileSync('du', ['-sb', store], { encoding: 'utf8' }).split('\t')[0]);
  rmSync(store, { recursive: true });
  const encode = { seconds: encoded.seconds, framesPerSecond, peak: encoded.peak };
  return { minutes: length, frames, encode, storeBytes, first, second };
}

/** Runs the command; its peak is what the system says that it held at most. */
async function run(args: string[]): Promise<{ seconds: number; result: Output; peak: number }> {
  const begun = performance.now();
  const child = spawn(process.execPath, [cli, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  let [text, peak] = ['', 0];
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    text += part;
  });
  const watch = setInterval(() => {
    try {
      const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
      peak = Math.max(peak, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) * 1024);
    } catch {
      // It has just ended, or this system has no /proc: then there is no peak.
    }
  }, 20);
  const code = await new Promise((resolve) => child.on('close', resolve));
  clearInterval(watch);
  if (code !== 0) throw new Error(`llamavid ${args.join(' ')} failed: ${text}`);
  return { seconds: (performance.now() - begun) / 1000, result: JSON.parse(text), peak };
}

function report(measured: readonly Measured[]): void {
  const mb = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;
  const s = (seconds: number) => `${seconds.toFixed(2)} s`;
  console.log(`${cpus()[0]?.model}, ${availableParallelism()} cores, Node ${process.version}\n`);
  console.log(
    '| video | frames | encode | frames/s | peak | store | first question | peak | second question | peak | second / first |',
  );
  console.log('| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |');
  for (const { minutes: length, frames, encode, storeBytes, first, second } of measured) {
    const share = `${((100 * second.seconds) / first.seconds).toFixed(0)} %`;
    const cells = [
      `${length} min`,
      frames,
      s(encode.seconds),
      encode.framesPerSecond.toFixed(0),
      mb(encode.peak),
      mb(storeBytes),
      s(first.seconds),
      mb(first.peak),
      s(second.seconds),
      mb(second.peak),
      share,
    ];
    console.log(`| ${cells.join(' | ')} |`);
  }
  console.log(
    '\n| video | question | decode | encode | tokens | prefill | frames decoded | frames encoded |',
  );
  console.log('| --- | --- | --- | --- | --- | --- | --- | --- |');
  for (const { minutes: length, first, second } of measured) {
    for (const [name, answer] of Object.entries({ first, second })) {
      const { decode, encode, tokens, prefill, framesDecoded, framesEncoded } = answer;
      const cells = [
        `${length} min`,
        name,
        s(decode),
        s(encode),
        s(tokens),
        s(prefill),
        framesDecoded,
        framesEncoded,
      ];
      console.log(`| ${cells.join(' | ')} |`);
    }
  }
  if (measured.length < 2) return;
  console.log('\nGrowth, as the exponent of frames that fits best (1 is linear, 0 is flat):\n');
  const grown = (value: (each: Measured) => number) =>
    exponent(measured.map((each) => [each.frames, value(each)])).toFixed(2);
  console.log(
    '| decode and encode | tokens | prefill | second question | peak of encode | peak of the second question |',
  );
  console.log('| --- | --- | --- | --- | --- | --- |');
  const cells = [
    grown(({ frames, encode }) => frames / encode.framesPerSecond),
    grown(({ second }) => second.tokens),
    grown(({ second }) => second.prefill),
    grown(({ second }) => second.seconds),
    grown(({ encode }) => encode.peak),
    grown(({ second }) => second.peak),
  ];
  console.log(`| ${cells.join(' | ')} |`);
}

/** The slope of log y over log x, by least squares. */
function exponent(points: readonly (readonly [number, number])[]): number {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const);
  const mean = (axis: 0 | 1) => logs.reduce((sum, point) => sum + point[axis], 0) / logs.length;
  const [meanX, meanY] = [mean(0), mean(1)];
  const products = logs.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0);
  return products / logs.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0);
}
