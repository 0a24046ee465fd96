import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { conversation, conversationTemplates } from '../src/index.js';

const oracle = JSON.parse(
  readFileSync(join(import.meta.dirname, '../../../fixtures/oracle/text/conversations.json'), 'utf8'),
);

describe('conversation', () => {
  it('knows the templates of the reference', () => {
    expect(conversationTemplates()).toEqual(expect.arrayContaining(oracle.upstream_templates));
  });

  it('renders as the reference does, and refuses what it fails at', () => {
    for (const { template, turns, prompt } of oracle.renderings) {
      // Records without turns are about the reference's messages with media.
      if (turns === undefined || !oracle.upstream_templates.includes(template)) continue;
      const render = () =>
        conversation(template).render(
          turns.map(([question, answer]: [string, string | null]) => ({
            question,
            ...(answer !== null && { answer }),
          })),
        );
      if (prompt === undefined) expect(render, template).toThrow();
      else expect(render(), template).toBe(prompt);
    }
  });

  it('stops at the separator of the template', () => {
    expect(conversation('llava_v1').stop).toBe('</s>');
    expect(conversation('llava_v0').stop).toBe('###');
  });

  it('refuses a name that it does not know', () => {
    expect(() => conversation('nobody')).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
