import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { LlamaVid, Profile, type TraceEvent } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const video = join(fixtures, 'world/media/multi-010.mp4');

async function ask(): Promise<void> {
  await using model = await LlamaVid.load('tiny', { device: 'cpu', dtype: 'f32' });
  await using clip = await model.open(video, { store: 'none' });
  await model.ask(clip, 'what appears first?', { maxNewTokens: 20 }).result();
}

/** Spans of a line, in the order of their beginnings. */
function spansOf(
  events: readonly TraceEvent[],
  line: number,
): { start: number; end: number; name: string }[] {
  const own = events.filter(({ ph, tid }) => ph === 'X' && tid === line);
  // Whole nanoseconds, as the trace has them: a sum of fractions may end a hair behind the next one's start.
  const whole = (us: number) => Math.round(us * 1000) / 1000;
  const spans = own.map(({ name, ts, dur }) => ({ name, start: whole(ts), end: whole(ts + dur) }));
  return spans.sort((a, b) => a.start - b.start || b.end - a.end);
}

describe('a profile', () => {
  it('tells where the time of a question went', async () => {
    const profile = Profile.start();
    expect(() => Profile.start()).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    const begun = performance.now();
    await ask();
    const asked = performance.now() - begun;
    const { summary, traceEvents } = profile.finish();

    const names = ['start', 'load', 'open', 'frames', 'encode', 'tokens', 'prefill', 'decode'];
    expect(Object.keys(summary.phases).sort()).toEqual([...names].sort());
    const { start = 0, ...others } = summary.phases;
    const sum = Object.values(others).reduce((all, each) => all + each);
    // One question: its phases follow each other.
    expect(sum).toBeLessThanOrEqual(asked);
    expect(sum).toBeGreaterThan(0);
    expect(start + sum + summary.otherMs).toBeCloseTo(summary.wallMs, 1);
    expect(summary.droppedEvents).toBe(0);
    for (const name of [
      'decode video',
      'resize',
      'encode',
      'attention',
      'feed forward',
      'make tokens',
      'prefill step',
      'decode token',
    ]) {
      expect(summary.spans[name]?.count, name).toBeGreaterThan(0);
    }
    const inParts = ['patches', 'attention', 'feed forward'].map((part) => summary.spans[part]?.totalMs ?? 0);
    expect(inParts.reduce((all, each) => all + each)).toBeLessThanOrEqual(
      summary.spans['encode']?.totalMs ?? 0,
    );

    const lines = traceEvents.filter(({ ph }) => ph === 'M');
    const lanes = lines.map(({ args }) => args['name']);
    expect(lanes).toContain('phases');
    expect(lanes).toContainEqual(expect.stringMatching(/^compute \d+$/));
    for (const { tid } of lines) {
      const open: { end: number; name: string }[] = [];
      for (const span of spansOf(traceEvents, tid)) {
        while ((open.at(-1)?.end ?? Number.POSITIVE_INFINITY) <= span.start) open.pop();
        // A span lies in the one that is open, or behind it.
        expect(span.end, `${span.name} in ${open.at(-1)?.name}`).toBeLessThanOrEqual(
          (open.at(-1)?.end ?? Number.POSITIVE_INFINITY) + 1,
        );
        open.push(span);
      }
    }
  });

  it('shows questions that are answered together beside each other', async () => {
    await using model = await LlamaVid.load('tiny', { device: 'cpu', dtype: 'f32' });
    const profile = Profile.start();
    // Long enough that the first is still read when the second begins, however late this thread gets to it.
    const questions = ['who is there? ', 'what is there? '].map((question) => question.repeat(250));
    const answers = model.askEach(undefined, questions, { maxNewTokens: 30 });
    await Promise.all(answers.map((answer) => answer.result()));
    const { traceEvents } = profile.finish();
    const prefills = traceEvents.filter(({ name, cat }) => name === 'prefill' && cat === 'phase');
    expect(prefills).toHaveLength(2);
    expect(new Set(prefills.map(({ tid }) => tid)).size).toBe(2);
  });

  it('begins anew, and leaves nothing behind where it was given up', async () => {
    {
      using _given = Profile.start();
    }
    const profile = Profile.start();
    const { summary } = profile.finish();
    expect(Object.keys(summary.phases)).toEqual(['start']);
    expect(summary.spans).toEqual({});
    expect(() => profile.finish()).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
