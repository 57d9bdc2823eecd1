// Colors of the canvas, in light and in dark. Neighboring parts have hues that are far apart.

const HUES = [258, 22, 165, 75, 330, 215, 130, 0];
const dark = matchMedia("(prefers-color-scheme: dark)");

export function onSchemeChange(callback) { dark.addEventListener("change", callback); }

export function partColor(index, drums = false) {
  if (drums) return dark.matches ? "oklch(0.78 0.015 260)" : "oklch(0.45 0.015 260)";
  const shade = 0.045 * (Math.floor(index / HUES.length) % 3);
  const lightness = dark.matches ? 0.76 - shade : 0.56 + shade;
  return `oklch(${lightness} 0.14 ${HUES[index % HUES.length]})`;
}

export function colors() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "soft", "line", "accent", "lane", "lane-even", "ruler"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
