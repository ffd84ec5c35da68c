// Pictures play in real time; the cursor and the scores beside them follow.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const slider = find("time"), play = find("play"), picture = find("picture");
const values = document.querySelectorAll(".value");
const span = data.end - data.begin || 1;
let now = data.begin, last = null;

// Which of rising numbers is the last that is at most a value; the first if none is.
function lastUpTo(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1; else high = middle;
  }
  return Math.max(0, low - 1);
}

function nearest(numbers, value) {
  const below = lastUpTo(numbers, value), above = Math.min(below + 1, numbers.length - 1);
  return Math.abs(numbers[above] - value) < Math.abs(numbers[below] - value) ? above : below;
}

function show(time) {
  now = Math.min(Math.max(time, data.begin), data.end);
  slider.value = now;
  find("when").textContent = `${now.toFixed(2)} s`;
  if (data.pictures.length) {
    const address = data.pictures[lastUpTo(data.times, now + 0.001)];
    if (picture.src !== address) picture.src = address;
  }
  const window = nearest(data.middles, now);
  values.forEach((cell, curve) => { cell.textContent = data.scores[curve][window].toFixed(3) });
  const box = find("curves").viewBox.baseVal, x = (now - data.begin) / span * box.width;
  find("cursor").setAttribute("d", `M${x} 0V${box.height}`);
}

function setPlaying(isPlaying) {
  play.setAttribute("aria-pressed", isPlaying);
  play.textContent = isPlaying ? "Pause" : "Play";
  last = null;
  if (isPlaying) requestAnimationFrame(step);
}

function step(moment) {
  if (play.getAttribute("aria-pressed") !== "true") return;
  if (last !== null) show(now + (moment - last) / 1000 * Number(find("speed").value));
  last = moment;
  if (now >= data.end) setPlaying(false); else requestAnimationFrame(step);
}

play.addEventListener("click", () => {
  const isPlaying = play.getAttribute("aria-pressed") === "true";
  if (!isPlaying && now >= data.end) show(data.begin);
  setPlaying(!isPlaying);
});
slider.addEventListener("input", () => show(Number(slider.value)));
find("curves").addEventListener("click", (event) => {
  const area = find("curves").getBoundingClientRect();
  show(data.begin + (event.clientX - area.left) / area.width * span);
});
document.querySelectorAll("[data-time]").forEach((button) => {
  button.addEventListener("click", () => show(Number(button.dataset.time)));
});
show(data.begin);
document.documentElement.dataset.ready = "true";
