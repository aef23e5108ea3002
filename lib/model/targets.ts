import { LowrankError, shown } from '../errors.ts';
import type { NativeLoraModule } from '../native.ts';
import type { ResolvedLoraConfig } from '../options/lora_config.ts';
import type { Family } from './families.ts';
import { allModuleNames, type ModelModule, nothingMatched } from './modules.ts';
import { NamePatterns } from './name_patterns.ts';
import { compilePythonPattern } from './python_pattern.ts';

// Which modules a LoraConfig means: PEFT's rules (peft/tuners/tuners_utils.py, check_target_module_exists; peft/utils/other.py,
// get_pattern_key and _set_trainable), with errors where PEFT only warns or says nothing.

/** A LoraConfig applied to a model. */
export interface Targets {
  lora: NativeLoraModule[];
  /** Slots of modules_to_save. */
  saved: string[];
  /** Slots of biases that are trained. */
  biases: string[];
}

type Option = keyof ResolvedLoraConfig;

/** Where a LoraConfig comes from. */
export interface ConfigOrigin {
  /** The option's name in messages: peftConfig.targetModules. */
  nameOption(option: Option): string;
  /** Whether a name or pattern that matches nothing is an error although others match. In a file it may be meant for other models. */
  everyNameMustMatch: boolean;
}

export const kUserOptions: ConfigOrigin = { nameOption: (option) => `peftConfig.${option}`, everyNameMustMatch: true };

/** Throws INVALID_OPTION naming the option, what it is and the nearest module names where nothing matches or LoRA cannot be put there. */
export function resolveTargets(config: ResolvedLoraConfig, modules: readonly ModelModule[], family: Family, origin: ConfigOrigin): Targets {
  const names = allModuleNames(modules);
  const saved = savedModules(config, modules, origin);
  const lora = loraModules(targetNames(config, modules, names, family, origin), config, origin);
  const adapted = new Set(lora.map((module) => module.module));
  const biases = modules.filter(
    (module) =>
      module.bias && !saved.includes(module) && (config.bias === 'all' || (config.bias === 'lora_only' && adapted.has(module.name))),
  );
  return {
    lora,
    saved: saved.flatMap((module) => (module.bias ? [module.weight, module.bias] : [module.weight])),
    biases: biases.map((module) => module.bias as string),
  };
}

function targetNames(
  config: ResolvedLoraConfig,
  modules: readonly ModelModule[],
  names: string[],
  family: Family,
  origin: ConfigOrigin,
): string[] {
  const wanted = config.targetModules ?? [...family.loraTargets];
  const isTarget = targetMatcher(wanted, config, modules, origin);
  const isExcluded = exclusionMatcher(config, origin);
  const included = names.filter((name) => isTarget(name));
  const matched = included.filter((name) => !isExcluded(name));
  if (included.length === 0) throw nothingMatched(origin.nameOption('targetModules'), describeWanted(config, wanted), names);
  if (matched.length === 0) {
    throw new LowrankError(
      'INVALID_OPTION',
      `${origin.nameOption('targetModules')}: found ${shown(wanted)}, but excludeModules and modulesToSave leave none of its ${included.length} modules`,
    );
  }
  if (origin.everyNameMustMatch && config.excludeModules?.length && !names.some(isExcludedByOption(config, origin))) {
    throw nothingMatched(origin.nameOption('excludeModules'), shown(config.excludeModules), names);
  }
  for (const name of matched) checkTargetable(name, modules, origin);
  return matched;
}

function describeWanted(config: ResolvedLoraConfig, wanted: string | string[]): string {
  if (config.layersToTransform === undefined) return shown(wanted);
  const pattern = config.layersPattern === undefined ? '' : ` and layersPattern ${shown(config.layersPattern)}`;
  return `${shown(wanted)} with layersToTransform ${shown(config.layersToTransform)}${pattern}`;
}

function checkTargetable(name: string, modules: readonly ModelModule[], origin: ConfigOrigin): void {
  const module = modules.find((candidate) => candidate.name === name);
  if (module?.kind === 'linear') return;
  const what = module ? `a module of kind '${module.kind}'` : 'a module without weights of its own';
  const advice = module ? `; name it in modulesToSave to train it whole` : '';
  throw new LowrankError(
    'INVALID_OPTION',
    `${origin.nameOption('targetModules')}: it means ${name}, ${what}; LoRA is put on the linear layers of the blocks${advice}`,
  );
}

type Matcher = (name: string) => boolean;

function targetMatcher(
  wanted: string | string[],
  config: ResolvedLoraConfig,
  modules: readonly ModelModule[],
  origin: ConfigOrigin,
): Matcher {
  if (typeof wanted !== 'string') {
    const inLayers = layerMatcher(config, origin);
    if (origin.everyNameMustMatch) checkEach(wanted, allModuleNames(modules), origin.nameOption('targetModules'));
    return (name) => wanted.includes(name) || (wanted.some((target) => name.endsWith(`.${target}`)) && inLayers(name));
  }
  if (wanted.toLowerCase() === 'all-linear') {
    const linear = new Set(modules.filter((module) => module.kind === 'linear').map((module) => module.name));
    const inLayers = layerMatcher(config, origin);
    return (name) => linear.has(name) && (config.layersToTransform === undefined || inLayers(name));
  }
  const pattern = compilePythonPattern(wanted, origin.nameOption('targetModules'));
  return (name) => pattern.matchesAll(name);
}

/** A name in a list that means nothing is a mistake even where others match. */
function checkEach(wanted: string[], names: string[], option: string): void {
  const lost = wanted.find((target) => !names.some((name) => name === target || name.endsWith(`.${target}`)));
  if (lost !== undefined) throw nothingMatched(option, shown(lost), names);
}

function layerMatcher(config: ResolvedLoraConfig, origin: ConfigOrigin): Matcher {
  if (config.layersToTransform === undefined) return () => true;
  const layers = [config.layersToTransform].flat();
  const given = [config.layersPattern ?? []].flat();
  const sources =
    given.length > 0 ? given.map((pattern) => `(?:^|.*?\\.)${pattern}\\.(?P<idx>\\d+)\\.`) : ['.*?\\.[^.]*\\.(?P<idx>\\d+)\\.'];
  const patterns = sources.map((source) => compilePythonPattern(source, origin.nameOption('layersPattern')));
  return (name) => {
    for (const pattern of patterns) {
      const groups = pattern.matchStart(name);
      if (groups) return layers.includes(Number(groups.idx));
    }
    return false;
  };
}

function exclusionMatcher(config: ResolvedLoraConfig, origin: ConfigOrigin): Matcher {
  const byOption = isExcludedByOption(config, origin);
  const saved = (config.modulesToSave ?? []).map((module) =>
    compilePythonPattern(`(^|.*\\.)${module}($|\\..*)`, origin.nameOption('modulesToSave')),
  );
  return (name) => byOption(name) || saved.some((pattern) => pattern.matchStart(name) !== undefined);
}

function isExcludedByOption(config: ResolvedLoraConfig, origin: ConfigOrigin): Matcher {
  const excluded = config.excludeModules;
  if (excluded === undefined || excluded.length === 0) return () => false;
  if (typeof excluded !== 'string') return (name) => excluded.some((end) => name === end || name.endsWith(`.${end}`));
  const pattern = compilePythonPattern(excluded, origin.nameOption('excludeModules'));
  return (name) => pattern.matchesAll(name);
}

function savedModules(config: ResolvedLoraConfig, modules: readonly ModelModule[], origin: ConfigOrigin): ModelModule[] {
  const wanted = config.modulesToSave ?? [];
  const names = modules.map((module) => module.name);
  for (const end of origin.everyNameMustMatch ? wanted : []) {
    if (!names.some((name) => name.endsWith(end))) throw nothingMatched(origin.nameOption('modulesToSave'), shown(end), names);
  }
  return modules.filter((module) => wanted.some((end) => module.name.endsWith(end)));
}

function loraModules(names: string[], config: ResolvedLoraConfig, origin: ConfigOrigin): NativeLoraModule[] {
  const ranks = new NamePatterns(config.rankPattern, origin.nameOption('rankPattern'));
  const alphas = new NamePatterns(config.alphaPattern, origin.nameOption('alphaPattern'));
  if (origin.everyNameMustMatch) for (const patterns of [ranks, alphas]) patterns.requireMatches(names);
  return names.map((module) => {
    const r = ranks.valueFor(module) ?? config.r;
    const alpha = alphas.valueFor(module) ?? config.loraAlpha;
    return { module, r, scale: config.useRslora ? alpha / Math.sqrt(r) : alpha / r, dropout: config.loraDropout };
  });
}

/** The list that PEFT writes for a family's default or 'all-linear': ends of names where those say the same. */
export function writtenTargets(config: ResolvedLoraConfig, family: Family): string | string[] {
  const wanted = config.targetModules ?? [...family.loraTargets];
  if (typeof wanted !== 'string' || wanted.toLowerCase() !== 'all-linear') return wanted;
  return ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'];
}
