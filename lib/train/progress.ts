import { styleText } from 'node:util';
import { withCommas } from '../numbers.ts';
import type { TrainingStep } from './callbacks.ts';
import type { LogEntry } from './trainer_state.ts';

/** Shows how a training goes. */
export interface Progress {
  /** A training of `totalSteps` begins, or continues after `doneSteps`. */
  begin(totalSteps: number, doneSteps: number): void;
  step(step: TrainingStep): void;
  log(entry: LogEntry): void;
  message(text: string): void;
  /** A message that is shown also where progress is not. */
  warn(text: string): void;
  end(): void;
}

export type LogLevel = 'error' | 'warning' | 'info';

const BAR_CELLS = 24;
const EIGHTHS = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
const REDRAW_MILLISECONDS = 100;
/** Weight of a new step in the running mean of the time a step takes. */
const NEW_STEP_WEIGHT = 0.1;

/** On the level 'info' a bar where `stream` is a terminal that can move the cursor, lines otherwise or with `plain`. */
export function createProgress(level: LogLevel, plain = false, stream: NodeJS.WriteStream = process.stderr): Progress {
  if (level !== 'info') return new OnlyWarnings(level === 'warning' ? stream : undefined);
  const canDraw = stream.isTTY && process.env.TERM !== 'dumb';
  return canDraw && !plain ? new ProgressBar(stream) : new ProgressLines(stream);
}

class OnlyWarnings implements Progress {
  readonly #stream: NodeJS.WriteStream | undefined;

  constructor(stream: NodeJS.WriteStream | undefined) {
    this.#stream = stream;
  }

  begin(): void {}
  step(): void {}
  log(): void {}
  message(): void {}
  warn(text: string): void {
    this.#stream?.write(`warning: ${text}\n`);
  }
  end(): void {}
}

/** Estimates the time left from a running mean over the steps. */
class Clock {
  #lastStep = performance.now();
  #secondsPerStep: number | undefined;

  tick(): void {
    const now = performance.now();
    const seconds = (now - this.#lastStep) / 1000;
    this.#lastStep = now;
    this.#secondsPerStep =
      this.#secondsPerStep === undefined ? seconds : this.#secondsPerStep + NEW_STEP_WEIGHT * (seconds - this.#secondsPerStep);
  }

  left(steps: number): string {
    return this.#secondsPerStep === undefined ? '?' : duration(this.#secondsPerStep * steps);
  }
}

/** One line for each log: for files, pipes and continuous integration. */
class ProgressLines implements Progress {
  readonly #stream: NodeJS.WriteStream;
  #clock = new Clock();
  #totalSteps = 0;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  begin(totalSteps: number): void {
    this.#totalSteps = totalSteps;
    this.#clock = new Clock();
  }

  step(): void {
    this.#clock.tick();
  }

  log(entry: LogEntry): void {
    const left = entry.loss === undefined ? '' : `  ${this.#clock.left(this.#totalSteps - entry.step)} left`;
    this.message(`step ${entry.step}/${this.#totalSteps}  ${describe(entry)}${left}`);
  }

  message(text: string): void {
    this.#stream.write(`${text}\n`);
  }

  warn(text: string): void {
    this.message(`warning: ${text}`);
  }

  end(): void {}
}

/** A bar on the last line that is drawn anew; messages and evaluations go above it. */
class ProgressBar implements Progress {
  readonly #stream: NodeJS.WriteStream;
  #clock = new Clock();
  #totalSteps = 0;
  #step = 0;
  #loss: number | undefined;
  #tokensPerSecond: number | undefined;
  #drawnAt = 0;
  #visible = false;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  begin(totalSteps: number, doneSteps: number): void {
    this.#totalSteps = totalSteps;
    this.#step = doneSteps;
    this.#clock = new Clock();
    this.#visible = true;
    this.#draw();
  }

  step(step: TrainingStep): void {
    this.#clock.tick();
    this.#step = step.step;
    if (!step.skipped) this.#loss = step.loss;
    this.#tokensPerSecond = step.tokensPerSecond;
    const isLast = step.step === this.#totalSteps;
    if (isLast || performance.now() - this.#drawnAt > REDRAW_MILLISECONDS) this.#draw();
  }

  log(entry: LogEntry): void {
    if (entry.evalLoss !== undefined || entry.trainLoss !== undefined) this.message(`step ${entry.step}  ${describe(entry)}`);
  }

  message(text: string): void {
    if (!this.#visible) {
      this.#stream.write(`${text}\n`);
      return;
    }
    this.#stream.write(`\r\x1b[K${text}\n`);
    this.#draw();
  }

  warn(text: string): void {
    this.message(`warning: ${text}`);
  }

  end(): void {
    if (!this.#visible) return;
    this.#draw();
    this.#stream.write('\n');
    this.#visible = false;
  }

  #draw(): void {
    this.#drawnAt = performance.now();
    const figures = [
      `${this.#step}/${this.#totalSteps}`,
      ...(this.#loss === undefined ? [] : [`loss ${this.#loss.toFixed(4)}`]),
      ...(this.#tokensPerSecond === undefined ? [] : [`${withCommas(Math.round(this.#tokensPerSecond))} tokens/s`]),
      `${this.#clock.left(this.#totalSteps - this.#step)} left`,
    ].join('  ');
    const cells = Math.max(0, Math.min(BAR_CELLS, (this.#stream.columns ?? 80) - figures.length - 5));
    const bar = styleText('cyan', drawBar(this.#step / Math.max(1, this.#totalSteps), cells), { stream: this.#stream });
    this.#stream.write(`\r${cells > 0 ? `▕${bar}▏ ` : ''}${figures}\x1b[K`);
  }
}

function drawBar(share: number, cells: number): string {
  const eighths = Math.round(share * cells * 8);
  return ('█'.repeat(Math.floor(eighths / 8)) + (EIGHTHS[eighths % 8] ?? '')).padEnd(cells);
}

function describe(entry: LogEntry): string {
  const figures: [string, number | undefined, (value: number) => string][] = [
    ['loss', entry.loss, (value) => value.toFixed(4)],
    ['grad norm', entry.gradNorm, (value) => value.toPrecision(3)],
    ['lr', entry.learningRate, (value) => value.toExponential(2)],
    ['held-out loss', entry.evalLoss, (value) => value.toFixed(4)],
    ['perplexity', entry.evalPerplexity, (value) => value.toFixed(2)],
    ['accuracy', entry.evalAccuracy, (value) => `${(100 * value).toFixed(1)}%`],
    ['mean loss', entry.trainLoss, (value) => value.toFixed(4)],
    ['time', entry.trainRuntime, duration],
    ['epoch', entry.epoch, (value) => value.toFixed(2)],
    ['tokens/s', entry.tokensPerSecond, (value) => Math.round(value).toString()],
  ];
  return figures.flatMap(([name, value, show]) => (value === undefined ? [] : [`${name} ${show(value)}`])).join('  ');
}

function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const padded = (value: number) => String(value).padStart(2, '0');
  return hours > 0 ? `${hours}:${padded(minutes)}:${padded(rest)}` : `${minutes}:${padded(rest)}`;
}
