// The page: its sections in order, the theme, and reading itself again while runs are trained.

const THEMES = ["auto", "light", "dark"];
const RELOAD_MS = 5000;

function setTheme(theme) {
  state.theme = THEMES.includes(theme) ? theme : "auto";
  document.documentElement.style.colorScheme = state.theme === "auto" ? "light dark" : state.theme;
  document.getElementById("theme").textContent = `Theme: ${state.theme}`;
  remember();
  redrawCharts();
}

function start() {
  const main = document.getElementById("main");
  main.append(...[
    overviewSection(), rewardSection(), picturesSection(), samplesSection(), constraintsSection(), heldOutSection(), monitorsSection(), healthSection(), probesSection(), configurationSection(),
  ].filter(Boolean));
  const contents = document.getElementById("contents");
  const links = new Map();
  for (const part of main.querySelectorAll("section")) {
    const link = el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent);
    links.set(part, link);
    contents.append(el("li", {}, link));
  }
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) links.get(target).setAttribute("aria-current", "true");
      else links.get(target).removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -60% 0px" });
  links.forEach((_, part) => seen.observe(part));
  watchCharts();
  setTheme(state.theme);
  document.getElementById("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
  if (DATA.live) follow(document.querySelector(".bar"));
}

/** Read the file again every few seconds, but not under someone's hands. */
function follow(bar) {
  const box = el("input", { type: "checkbox", id: "follow", checked: state.follow !== false, onchange: (event) => { state.follow = event.target.checked; remember(); } });
  bar.insertBefore(el("label", { class: "row" }, box, " Follow"), bar.lastElementChild);
  setInterval(() => {
    const isBusy = document.hidden || document.querySelector("dialog[open]") || document.activeElement?.matches("input[type=search], select") || document.getElementById("play")?.getAttribute("aria-pressed") === "true";
    if (box.checked && !isBusy) location.reload();
  }, RELOAD_MS);
}

start();
