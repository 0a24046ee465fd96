import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SpeechModel } from '@llamavid/speech';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { LlamaVid, previewPrompt } from '../src/index.js';
import { fixtures } from './oracle-model.js';
import { roomyModel } from './roomy-model.js';

const whisper = join(fixtures, 'speech');
const film = join(fixtures, 'clips/bbb_720p_h264_aac.mp4');
const silent = join(fixtures, 'world/media/multi-018.mp4');
const withStream = join(fixtures, 'clips/subs_audio.mkv');
const folder = mkdtempSync(join(tmpdir(), 'llamavid-speech-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Random weights are never sure of what they hear, so what they are unsure of is taken too. */
function takeUnsure() {
  const transcribe = SpeechModel.prototype.transcribe;
  return vi.spyOn(SpeechModel.prototype, 'transcribe').mockImplementation(async function (
    this: SpeechModel,
    ...args
  ) {
    const heard = await transcribe.apply(this, args);
    return { ...heard, subtitles: heard.segments.map(({ start, end, text }) => ({ start, end, text })) };
  });
}

describe('speech', () => {
  const roomy = roomyModel();
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load(roomy.folder, { device: 'cpu', dtype: 'f32' });
  });
  afterAll(async () => {
    await model.close();
    roomy[Symbol.dispose]();
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
  });
  const seen = async (video: string, options: Parameters<typeof previewPrompt>[2]) => {
    const preview = await previewPrompt([video], 'What?', { model: roomy.folder, frames: 2, ...options });
    return { report: preview.subtitles[0], prompt: preview.prompt };
  };

  it('is heard where nothing is written, and stands in the prompt as written subtitles do', async () => {
    takeUnsure();
    using speech = await SpeechModel.load(whisper);
    const { subtitles, language } = await speech.transcribe(film);
    expect(subtitles.length).toBeGreaterThan(0);
    const progress: number[][] = [];
    const onSpeech = (...seconds: number[]) => progress.push(seconds);
    const heard = await seen(film, { subtitles: 'auto', speechModel: whisper, onSpeech });
    expect(heard.report).toEqual({
      speech: { model: whisper, language },
      count: subtitles.length,
      notes: [expect.stringContaining('llamavid transcribe')],
    });
    expect(heard.prompt).toBe((await seen(film, { subtitles })).prompt);
    const [done, total] = progress.at(-1) ?? [];
    expect(done).toBe(total);
    vi.stubEnv('LLAMAVID_SPEECH_MODEL', whisper);
    expect((await seen(film, { subtitles: 'speech' })).prompt).toBe(heard.prompt);
    expect((await seen(film, { subtitles: 'auto', speechModel: 'none' })).report).toBeUndefined();
    expect((await seen(film, {})).report).toBeUndefined();
  });

  it('comes behind a file beside the video and a text stream in it', async () => {
    const loads = vi.spyOn(SpeechModel, 'load');
    const copy = join(folder, 'film.mp4');
    cpSync(film, copy);
    writeFileSync(join(folder, 'film.srt'), '1\n00:00:00,000 --> 00:00:01,000\nHi.\n');
    const options = { subtitles: 'auto', speechModel: whisper };
    expect((await seen(copy, options)).report).toMatchObject({ path: join(folder, 'film.srt'), count: 1 });
    expect((await seen(withStream, options)).report).toMatchObject({ stream: { index: 2 }, count: 2 });
    expect(loads).not.toHaveBeenCalled();
    // Of what is written nothing is taken where speech itself is asked for.
    expect((await seen(copy, { ...options, subtitles: 'speech' })).report).toBeUndefined();
    expect(loads).toHaveBeenCalledOnce();
  });

  it('is written down once for all questions about a video', async () => {
    const transcriptions = takeUnsure();
    const options = { frames: 2, speechModel: whisper };
    const ask = { subtitles: 'auto', maxNewTokens: 2 };
    await using looked = await LlamaVid.look(roomy.folder, film, { ...options, subtitles: 'auto' });
    expect(transcriptions).toHaveBeenCalledTimes(1);
    const plan = await LlamaVid.plan(roomy.folder, [looked]);
    await using opened = await model.open(looked);
    const answers = model.askEach(opened, ['What?', 'Who?', 'Why?'], ask);
    const results = await Promise.all(answers.map((answer) => answer.result()));
    expect(transcriptions).toHaveBeenCalledTimes(1);
    expect(results.map(({ subtitles }) => subtitles[0]?.speech?.model)).toEqual([whisper, whisper, whisper]);
    expect(plan.visualTokens).toBe(results[0]?.usage.visualTokens);
    // Also where it is asked for with the questions alone.
    await using plain = await model.open(film, options);
    await Promise.all(model.askEach(plain, ['What?', 'Who?'], ask).map((answer) => answer.result()));
    expect(transcriptions).toHaveBeenCalledTimes(2);
    // A plan does not listen.
    const { notes } = await LlamaVid.plan(roomy.folder, [film], { ...options, subtitles: 'auto' });
    expect(notes).toEqual([expect.stringContaining('does not listen')]);
    expect(transcriptions).toHaveBeenCalledTimes(2);
  });

  it('is none in a silent video, and an error where it was asked for', async () => {
    expect((await seen(silent, { subtitles: 'auto', speechModel: whisper })).report).toBeUndefined();
    const refused = async (code: string, options: Parameters<typeof seen>[1], video = silent) =>
      expect(seen(video, options)).rejects.toMatchObject({ code });
    await refused('MEDIA_NO_AUDIO', { subtitles: 'speech', speechModel: whisper });
    await refused('INVALID_ARGUMENT', { subtitles: 'speech' }, film);
    await refused('MODEL_NOT_FOUND', { subtitles: 'auto', speechModel: join(folder, 'none') }, film);
    const picture = join(fixtures, 'world/media/image-000.png');
    await refused('INVALID_ARGUMENT', { subtitles: 'speech', speechModel: whisper }, picture);
    const aborted = { subtitles: 'auto', speechModel: whisper, signal: AbortSignal.abort() };
    await refused('ABORTED', aborted, film);
  });

  it('names the package that it needs, and nothing else needs it', () => {
    const script = join(folder, 'without-speech.mjs');
    writeFileSync(
      script,
      `import { registerHooks } from 'node:module';
registerHooks({
  resolve(name, context, next) {
    if (name !== '@llamavid/speech') return next(name, context);
    throw Object.assign(new Error('Cannot find package'), { code: 'ERR_MODULE_NOT_FOUND' });
  },
});
const { previewPrompt } = await import(${JSON.stringify(join(import.meta.dirname, '../dist/index.js'))});
const [film, model, speechModel] = process.argv.slice(2);
for (const options of [{}, { speechModel }]) {
  await previewPrompt([film], 'What?', { model, frames: 2, subtitles: 'auto', ...options }).then(
    () => console.log('answered'),
    ({ code, message, hint }) => console.log(code, message, hint),
  );
}
`,
    );
    const run = [script, film, join(fixtures, 'random-model'), whisper];
    const printed = execFileSync(process.execPath, run, { encoding: 'utf8' });
    expect(printed).toMatch(
      /^answered\nINVALID_ARGUMENT .*@llamavid\/speech.* npm install @llamavid\/speech/,
    );
  });
});
