// Package container tests the files here against the types and schemas of those who read them. It is a module of its
// own, so that lockfs does not depend on them.
package container

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// decode reads a manifest; a key that its type does not have is an error.
func decode[T any](t *testing.T, path string) (manifest T) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, &manifest), path)
	return manifest
}

// hostMount is how a container mounts a path of the host.
func hostMount(t *testing.T, spec corev1.PodSpec, c corev1.Container, host string) corev1.VolumeMount {
	t.Helper()
	for _, v := range spec.Volumes {
		if v.HostPath == nil || v.HostPath.Path != host {
			continue
		}
		for _, m := range c.VolumeMounts {
			if m.Name == v.Name {
				return m
			}
		}
	}
	t.Fatalf("container %s does not mount %s of the host", c.Name, host)
	return corev1.VolumeMount{}
}

// requireVolumes: the API server refuses a mount without its volume.
func requireVolumes(t *testing.T, spec corev1.PodSpec) {
	t.Helper()
	names := map[string]bool{}
	for _, v := range spec.Volumes {
		require.False(t, names[v.Name], "volume %s twice", v.Name)
		names[v.Name] = true
	}
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		for _, m := range c.VolumeMounts {
			require.True(t, names[m.Name], "container %s mounts volume %s, which is not there", c.Name, m.Name)
		}
	}
}

const parent = "/run/lockfs"

func TestDaemonSet(t *testing.T) {
	set := decode[appsv1.DaemonSet](t, "kubernetes/daemonset.yaml")
	require.Equal(t, "apps/v1 DaemonSet", set.APIVersion+" "+set.Kind)
	require.Equal(t, set.Spec.Selector.MatchLabels, set.Spec.Template.Labels)
	spec := set.Spec.Template.Spec
	requireVolumes(t, spec)
	require.True(t, spec.HostPID)

	c := spec.Containers[0]
	m := hostMount(t, spec, c, parent)
	require.Equal(t, corev1.MountPropagationBidirectional, *m.MountPropagation)
	require.True(t, *c.SecurityContext.Privileged, "which the API server requires for Bidirectional")
	require.Equal(t, parent, m.MountPath, "the same path inside, so that what lockfs says of itself is true outside")
	require.Equal(t, []string{"mount", parent + "/locks"}, c.Args)
	require.Equal(t, "/var/lib/lockfs", hostMount(t, spec, c, "/var/lib/lockfs").MountPath, "or locks end with the Pod")
	require.Equal(t, parent, hostMount(t, spec, spec.InitContainers[0], parent).MountPath)
}

func TestClientPod(t *testing.T) {
	pod := decode[corev1.Pod](t, "kubernetes/client.yaml")
	require.Equal(t, "v1 Pod", pod.APIVersion+" "+pod.Kind)
	requireVolumes(t, pod.Spec)
	c := pod.Spec.Containers[0]
	require.Equal(t, corev1.MountPropagationHostToContainer, *hostMount(t, pod.Spec, c, parent).MountPropagation)
	require.Nil(t, c.SecurityContext.Privileged)
	require.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
	require.True(t, *pod.Spec.SecurityContext.RunAsNonRoot)
}

func TestCompose(t *testing.T) {
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  ".",
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml"}},
	}, func(o *loader.Options) { o.SetProjectName("lockfs", true) })
	require.NoError(t, err)
	server, client := project.Services["lockfs"], project.Services["client"]
	require.Equal(t, "rshared", propagation(t, server, parent))
	require.Equal(t, "rslave", propagation(t, client, parent))
	require.Equal(t, "host", server.Pid)
	require.Equal(t, []string{"SYS_ADMIN"}, server.CapAdd)
	require.Equal(t, "/dev/fuse", server.Devices[0].Source)
	require.FileExists(t, filepath.Join(server.Build.Context, server.Build.Dockerfile))
	require.Equal(t, []string{"ALL"}, client.CapDrop)
	require.True(t, client.ReadOnly)
}

// propagation is that of a service's bind mount of a host path.
func propagation(t *testing.T, s types.ServiceConfig, host string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind && v.Source == host {
			require.Equal(t, host, v.Target)
			return v.Bind.Propagation
		}
	}
	t.Fatalf("service %s does not mount %s of the host", s.Name, host)
	return ""
}
