import { describe, expect, it } from 'vitest';
import { SharedWork } from '../src/shared-work.js';

/** Work that ends when it is told to, and counts how often it ran and what was freed. */
function controlled() {
  const runs: { finish: (value: number) => void; signal: AbortSignal }[] = [];
  const freed: number[] = [];
  const shared = new SharedWork<number>(
    (signal) =>
      new Promise((resolve, reject) => {
        runs.push({ finish: resolve, signal });
        signal.addEventListener('abort', () => reject(new Error('stopped')));
      }),
    (value) => freed.push(value),
  );
  return { shared, runs, freed };
}

describe('SharedWork', () => {
  it('runs once for all who wait, and later ones get the same value', async () => {
    const { shared, runs } = controlled();
    const waiting = [shared.wait(), shared.wait()];
    runs[0]?.finish(7);
    expect(await Promise.all(waiting)).toEqual([
      { value: 7, fresh: true },
      { value: 7, fresh: false },
    ]);
    expect(await shared.wait()).toEqual({ value: 7, fresh: false });
    expect(runs).toHaveLength(1);
  });

  it('goes on while anybody waits', async () => {
    const { shared, runs } = controlled();
    const controller = new AbortController();
    const impatient = shared.wait(controller.signal);
    const patient = shared.wait();
    controller.abort();
    await expect(impatient).rejects.toMatchObject({ code: 'ABORTED' });
    expect(runs[0]?.signal.aborted).toBe(false);
    runs[0]?.finish(7);
    expect(await patient).toEqual({ value: 7, fresh: false });
  });

  it('stops when the last one gives up, and runs again for the next', async () => {
    const { shared, runs, freed } = controlled();
    const controller = new AbortController();
    const impatient = shared.wait(controller.signal);
    controller.abort();
    await expect(impatient).rejects.toMatchObject({ code: 'ABORTED' });
    expect(runs[0]?.signal.aborted).toBe(true);
    const next = shared.wait();
    runs[1]?.finish(8);
    expect(await next).toEqual({ value: 8, fresh: true });
    expect(freed).toEqual([]);
  });

  it('keeps a value when somebody aborts after it is done', async () => {
    const { shared, runs, freed } = controlled();
    const controller = new AbortController();
    const waiting = shared.wait(controller.signal);
    runs[0]?.finish(7);
    await waiting;
    controller.abort();
    expect(await shared.wait()).toEqual({ value: 7, fresh: false });
    expect(freed).toEqual([]);
  });

  it('frees its value once', async () => {
    const { shared, runs, freed } = controlled();
    const waiting = shared.wait();
    runs[0]?.finish(7);
    await waiting;
    await Promise.all([shared.stop(), shared.stop()]);
    expect(freed).toEqual([7]);
  });

  it('tries again after a failure', async () => {
    let tries = 0;
    const shared = new SharedWork(
      async () => {
        tries += 1;
        if (tries === 1) throw new Error('broken');
        return tries;
      },
      () => undefined,
    );
    await expect(shared.wait()).rejects.toThrow('broken');
    expect(await shared.wait()).toEqual({ value: 2, fresh: true });
  });
});
