"use strict";
// The page is light or dark as the system is, or as one says.
document.getElementById("theme").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
});
