{{/* The name that everything of this release begins with. */}}
{{- define "lrp.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of things that no namespace keeps apart: two releases may have one name. */}}
{{- define "lrp.clusterName" -}}
{{- if eq .Release.Namespace "kube-system" }}{{ include "lrp.name" . }}
{{- else }}{{ include "lrp.name" . }}-{{ .Release.Namespace }}
{{- end }}
{{- end }}

{{/* What pods are selected by; takes (dict "root" $ "component" NAME). Never changes: selectors are immutable. */}}
{{- define "lrp.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "lrp.labels" -}}
{{ include "lrp.selector" . }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Labels of a pod: the chart's, and what people add. */}}
{{- define "lrp.podLabels" -}}
{{- $more := (get .root.Values .component).podLabels }}
{{- merge (include "lrp.labels" . | fromYaml) $more | toYaml }}
{{- end }}

{{/* The image of a component; takes the same. validate.yaml has seen to it that there is one. */}}
{{- define "lrp.image" -}}
{{- $image := (get .root.Values .component).image }}
{{- $image.repository | default (printf "%s/lrp-%s" (trimSuffix "/" .root.Values.image.registry) .component) }}
{{- if $image.digest }}@{{ $image.digest }}
{{- else }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* Where a pod may be, and what it is pulled with. */}}
{{- define "lrp.placement" -}}
{{- $of := get .root.Values .component }}
{{- with $of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a pod that needs no rights on its node is held to: Kubernetes' "restricted" profile. */}}
{{- define "lrp.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "lrp.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the pods of `helm test` have in common: the agent's image, and no rights. */}}
{{- define "lrp.testPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "lrp.restrictedPod" . | nindent 2 }}
{{- end }}
{{- define "lrp.testContainer" -}}
image: {{ include "lrp.image" (dict "root" . "component" "agent") }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [python3, -c]
env:
  - name: NODE
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
securityContext: {{- include "lrp.restrictedContainer" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* The file of settings: the values that are settings, as they are. The agent takes a null as not said. */}}
{{- define "lrp.settings" -}}
{{- $settings := pick .Values "kubeProxyReplacement" "socketLB" "localRedirectPolicies" "localRedirectPolicy" "enableIPv4" "enableIPv6" "terminateTCP" }}
{{- $_ := set $settings "bpf" (pick .Values.bpf "lbMapMax" "lbBackendMapMax" "ctTcpMax") }}
{{- toYaml $settings }}
{{- end }}

{{/* "true" if kube-proxy is replaced, as the agent reads it. */}}
{{- define "lrp.replaces" -}}
{{- has (toString .Values.kubeProxyReplacement) (list "true" "strict") | ternary "true" "" }}
{{- end }}

{{/* "true" if there is a socket level, as the agent reads it. */}}
{{- define "lrp.socketLevel" -}}
{{- if kindIs "invalid" .Values.socketLB.enabled }}
{{- if or (include "lrp.replaces" .) (kindIs "invalid" .Values.kubeProxyReplacement) }}true{{ end }}
{{- else }}
{{- toString .Values.socketLB.enabled | eq "true" | ternary "true" "" }}
{{- end }}
{{- end }}

{{/* The port of agents' metrics. */}}
{{- define "lrp.agentMetricsPort" -}}
{{- regexFind "[0-9]+$" .Values.agent.metricsBindAddress }}
{{- end }}

{{/* Where the API server is, in place of what the kubelet tells every pod. */}}
{{- define "lrp.apiServer" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | default "6443" | toString | quote }}
{{- end }}
{{- end }}

{{/*
What is there for an uninstall only, from its beginning; takes its weight. One that failed itself stays, for people to
read, until the next time; the others go.
*/}}
{{- define "lrp.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
