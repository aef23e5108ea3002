import { Script } from 'node:vm';
import { deriveAssistantSpans, holdsReserved, type TemplateMessage, withEndTokens } from './assistant_spans.ts';
import { type CompiledTemplate, compileTemplate, normalizeMessages, type Span } from './template_engine.ts';

// The entry of the process that chat templates are rendered in. Each conversation has a deadline of its own; what outgrows the heap
// kills this process and not the user's.

/** One conversation to render. */
interface RenderJob {
  messages: Record<string, unknown>[];
  tools?: unknown[];
  /** Only answers from this message on are supervised. */
  supervisedFrom?: number;
}

export interface RenderRequest {
  source: string;
  jobs: RenderJob[];
  addGenerationPrompt: boolean;
  variables: Record<string, unknown>;
  /** What the assistant is to learn is wanted too. */
  spans?: { endTokens: string[]; specialTokens: string[] };
  /** Characters that a render may have beyond those of its conversation. */
  outputLimit: number;
  /** Milliseconds for one conversation. */
  deadline: number;
}

export interface RenderResult {
  text: string;
  spans: Span[];
}

/** What became of one conversation. */
export type RenderOutcome = RenderResult | { error: string };

/** Answer to a request: an outcome for each job, or why the template cannot be used at all. */
export type RenderReply = { outcomes: RenderOutcome[] } | { failure: string };

const compiled = new Map<string, CompiledTemplate>();
const MAX_CACHED = 16;

function compile(source: string): CompiledTemplate {
  let template = compiled.get(source);
  if (!template) {
    template = compileTemplate(source);
    if (compiled.size >= MAX_CACHED) compiled.clear();
    compiled.set(source, template);
  }
  return template;
}

function renderJob(template: CompiledTemplate, request: RenderRequest, job: RenderJob): RenderResult {
  if (holdsReserved(job.messages) || holdsReserved(job.tools)) {
    throw new Error('a message holds one of the noncharacters U+FDD0 to U+FDEF, which stand for marks while rendering');
  }
  const messages = normalizeMessages(job.messages);
  const limit = request.outputLimit + characters(job);
  const render = (some: TemplateMessage[], addGenerationPrompt: boolean) => {
    const rendered = template.render({
      tools: job.tools ?? null,
      documents: null,
      ...request.variables,
      messages: some,
      add_generation_prompt: addGenerationPrompt,
    });
    if (rendered.text.length > limit) throw new Error(`it wrote ${rendered.text.length} characters; at most ${limit} are allowed here`);
    return rendered;
  };
  const { text, generated } = render(messages, request.addGenerationPrompt);
  if (!request.spans) return { text, spans: [] };
  const from = job.supervisedFrom ?? 0;
  if (template.marksGeneration) {
    const spans = withEndTokens(generated, text, request.spans.endTokens);
    return { text, spans: from === 0 ? spans : spansFrom(spans, messages, from, text, () => render(messages.slice(0, from), true).text) };
  }
  const context = { render: (some: TemplateMessage[], prompt: boolean) => render(some, prompt).text, ...request.spans };
  const spans = deriveAssistantSpans(context, messages, text);
  return { text, spans: spans.filter((span) => span.message >= from).map(({ span }) => span) };
}

/** Those generation blocks that belong to messages from `from` on. */
function spansFrom(spans: Span[], messages: TemplateMessage[], from: number, text: string, prompt: () => string): Span[] {
  const answers = (some: TemplateMessage[]) => some.filter((message) => message.role === 'assistant').length;
  if (spans.length === answers(messages)) return spans.slice(answers(messages.slice(0, from)));
  const before = prompt();
  if (!text.startsWith(before)) throw new Error('the completion cannot be told from the prompt: the template rewrites earlier turns');
  return spans.filter(([start]) => start >= before.length);
}

function characters(value: unknown): number {
  if (typeof value === 'string') return value.length;
  if (value === null || typeof value !== 'object') return 0;
  return Object.values(value).reduce((sum: number, item) => sum + characters(item), 0);
}

// A script's timeout stops whatever runs below it, so the work is called from a one-line script.
const timed = new Script('globalThis.lowrankRender()');

function withDeadline<T>(deadline: number, run: () => T): T {
  Object.assign(globalThis, { lowrankRender: run });
  try {
    return timed.runInThisContext({ timeout: deadline }) as T;
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new Error(`it ran for more than ${deadline / 1000} s`);
  }
}

const message = (error: unknown) => (error instanceof Error ? error.message : String(error));

function answer(request: RenderRequest): RenderReply {
  try {
    const template = withDeadline(request.deadline, () => compile(request.source));
    return { outcomes: renderAll(template, request) };
  } catch (error) {
    return { failure: message(error) };
  }
}

/** Many conversations share one deadline while they fit in it, because to set one costs as much as a render. */
function renderAll(template: CompiledTemplate, request: RenderRequest): RenderOutcome[] {
  const { jobs, deadline } = request;
  const outcomes: RenderOutcome[] = [];
  const renderNext = () => {
    try {
      outcomes.push(renderJob(template, request, jobs[outcomes.length] as RenderJob));
    } catch (error) {
      outcomes.push({ error: message(error) });
    }
  };
  while (outcomes.length < jobs.length) {
    const done = outcomes.length;
    try {
      withDeadline(deadline, () => {
        while (outcomes.length < jobs.length) renderNext();
      });
    } catch (error) {
      if (outcomes.length === done) throw error;
      // The time was the others' too: the one that was stopped gets all of it.
      withDeadline(deadline, renderNext);
    }
  }
  return outcomes;
}

process.on('message', (request: RenderRequest) => process.send?.(answer(request)));
// Ctrl-C reaches all processes of a terminal; what it means is for the parent to say.
process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit());
